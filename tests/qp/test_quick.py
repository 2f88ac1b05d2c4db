"""The short way of torch tensors gives the numbers of the general way, and steps aside where it has no answer."""

import numpy as np
import pytest

import layercompiler as lc
from layercompiler import kernels
from tests.qp import families

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")
OUTPUTS = ["x", "y", "z"]


def problem(shared=(), count=5, seed=0):
    arrays = [a[0] if k in shared else a for k, a in zip("QpGhAb", families.batch("std", 6, 5, 2, count, seed), strict=True)]
    if shared:  # feasible whatever the batch shares: the origin is
        arrays[3], arrays[5] = np.abs(arrays[3]) + 0.1, 0.0 * arrays[5]
    return arrays, [torch.tensor(a, requires_grad=True) for a in arrays]


@pytest.mark.parametrize("shared", ["", "Q", "QGA", "hb", "QGhAb"])
def test_numbers_are_those_of_the_general_way(shared):
    arrays, given = problem(shared)
    layer = lc.export(lc.QP(6, 5, 2), "torch", variables=OUTPUTS)
    assert layer._bound.quick is not None
    found = layer.compiled.evaluate(arrays)
    rng = np.random.default_rng(0)
    w = [rng.standard_normal(o.shape) for o in found.outputs]
    outputs = layer(*given)
    assert type(outputs[0].grad_fn).__name__ == "_NodeBackward"
    for got, expected in zip(outputs, found.outputs, strict=True):
        np.testing.assert_array_equal(got.detach(), expected)
    gradients = torch.autograd.grad(outputs, given, [torch.tensor(k) for k in w], retain_graph=True)
    for got, expected in zip(gradients, found.vjp(w), strict=True):
        np.testing.assert_array_equal(got, expected)
    again = torch.autograd.grad(outputs[0], given[1], torch.tensor(w[0]))[0]  # one output, one parameter
    np.testing.assert_array_equal(again, found.vjp([w[0], None, None])[1])


def test_an_output_may_be_written_to_and_a_parameter_may_not():
    _, given = problem()
    layer = lc.export(lc.QP(6, 5, 2), "torch")
    (x,) = layer(*given)
    expected = torch.autograd.grad(x.sum(), given)
    (x,) = layer(*given)
    total = x.sum()
    with torch.no_grad():
        x.mul_(3.0)
    for a, b in zip(torch.autograd.grad(total, given), expected, strict=True):
        assert torch.equal(a, b)
    (x,) = layer(*given)
    with torch.no_grad():
        given[1].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_saved_tensors_that_a_hook_rounds_and_another_default_device():
    _, given = problem()
    layer = lc.export(lc.QP(6, 5, 2), "torch")
    want = torch.autograd.grad(layer(*given)[0].sum(), given)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.float(), lambda t: t):
        total = layer(*given)[0].sum()
    for a, b in zip(torch.autograd.grad(total, given), want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
    read, make = [], layer.compiled.matrix_evaluation
    layer.compiled.__dict__["matrix_evaluation"] = lambda arrays, *rest: read.extend(arrays) or make(arrays, *rest)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.float(), lambda t: t):
        total = layer(*given)[0].sum()
    torch.autograd.grad(total, given)
    assert len(read) == 6 and all(a.dtype == np.float64 and a.flags.c_contiguous for a in read)  # the kernel reads nothing else
    with torch.device("meta"):
        (x,) = layer(*given)
        found = torch.autograd.grad(x, given, torch.ones(x.shape, dtype=torch.float64, device="cpu"))
    for a, b in zip(found, want, strict=True):
        assert torch.equal(a, b)


def test_second_derivatives_and_batched_cotangents_go_the_general_way():
    _, given = problem(count=2)
    layer = lc.export(lc.QP(6, 5, 2), "torch")
    assert torch.autograd.gradgradcheck(
        lambda p, h: layer(given[0], p, given[2], h, given[4], given[5])[0], (given[1], given[3]), atol=1e-6
    )
    (x,) = layer(*given)
    eye = torch.eye(6, dtype=torch.float64)[:, None].expand(6, 2, 6)
    (rows,) = torch.autograd.grad(x, given[1], eye, is_grads_batched=True, retain_graph=True)
    for k in range(6):
        torch.testing.assert_close(rows[k], torch.autograd.grad(x, given[1], eye[k], retain_graph=True)[0], rtol=1e-9, atol=1e-12)


def test_failures_and_strange_cotangents():
    arrays, given = problem()
    layer = lc.export(lc.QP(6, 5, 2), "torch", on_error="flag")
    broken = torch.tensor(arrays[3])
    broken[0], broken[1] = float("nan"), -1e3
    (x,) = layer(given[0], given[1], given[2], broken, given[4], given[5])
    assert torch.isnan(x[0]).all() and not torch.isnan(x[2:]).any()
    for _ in range(20):  # the pause after it ends
        (x,) = layer(*given)
    assert type(x.grad_fn).__name__ == "_NodeBackward"
    cotangent = torch.ones_like(x)
    cotangent[0, 0] = float("nan")
    gradient = torch.autograd.grad(x, given[1], cotangent)[0]
    assert torch.isnan(gradient[0]).any() and not torch.isnan(gradient[1:]).any()


def test_other_tensors_go_the_general_way():
    arrays, given = problem()
    layer = lc.export(lc.QP(6, 5, 2), "torch")
    expected = layer(*given)[0]
    wide = [torch.tensor(a).transpose(-1, -2).contiguous().transpose(-1, -2) if a.ndim > 2 else torch.tensor(a) for a in arrays]
    torch.testing.assert_close(layer(*wide)[0], expected, rtol=0, atol=0)
    torch.testing.assert_close(layer(*[t.detach().float() for t in given])[0].double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.func.vmap(layer)(*given)[0], expected, rtol=0, atol=0)


def test_tensors_without_memory_and_moved_ones():
    _, given = problem()
    layer = lc.export(lc.QP(6, 5, 2), "torch")
    plain = [t.detach() for t in given]
    zeros = torch._efficientzerotensor(given[1].shape, dtype=torch.float64)
    expected = layer(plain[0], torch.zeros_like(plain[1]), *plain[2:])[0]
    torch.testing.assert_close(layer(plain[0], zeros, *plain[2:])[0], expected, rtol=0, atol=0)
    kept = []
    torch.func.vmap(lambda t: kept.append(t) or t)(plain[1])
    assert layer._bound.quick.read([plain[0], kept[0], *plain[2:]]) is None  # the transform has ended, its tensor has not
    assert layer._bound.quick.read([plain[0], plain[1].to_sparse(), *plain[2:]]) is None
    turned = torch._neg_view(-plain[1])
    torch.testing.assert_close(layer(plain[0], turned, *plain[2:])[0], layer(*plain)[0], rtol=0, atol=0)

    wanted = torch.autograd.grad(layer(*given)[0].sum(), given)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().mT.contiguous(), lambda t: t.mT):
        (x,) = layer(*given)
    for a, b in zip(torch.autograd.grad(x.sum(), given), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    (x,) = layer(*given)
    zero, *_ = torch.autograd.grad(x, given[1], torch._efficientzerotensor(x.shape, dtype=torch.float64))
    assert not zero.any()


def test_gradients_of_many_steps_share_memory_and_no_numbers():
    """Large gradients come in memory that was used before; those that are still held are left alone."""
    arrays = families.batch("std", 60, 60, 15, 64)
    given = [torch.tensor(a, requires_grad=True) for a in arrays]
    layer = lc.export(lc.QP(60, 60, 15), "torch")
    w = [torch.tensor(np.random.default_rng(k).standard_normal((64, 60))) for k in range(3)]
    held = [torch.autograd.grad(layer(*given)[0], given, k) for k in w]
    for k, before in zip(w, held, strict=True):
        for a, b in zip(torch.autograd.grad(layer(*given)[0], given, k), before, strict=True):
            assert torch.equal(a, b)
