"""The short way of cone programs: the same bits as the general way, and the general way where it does not serve."""

import gc
import weakref

import cvxpy as cp
import numpy as np
import pytest
import torch

import layercompiler as lc
from benchmarks.problems import BUILDERS
from layercompiler import kernels
from layercompiler.errors import NonFiniteInputError, ParameterDomainError

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the compiled kernels were not built")
SMALL = {
    "qp": (8, 5, 3),
    "lp": (8, 4),
    "portfolio_qp": (9, 3),
    "portfolio_socp": (40, 4),
    "logistic": (3, 8),
    "sdp": (4, 2),
    "sparsemax": (9,),
}
SMALL |= {"sdp": (4, 2), "sparsemax": (9,), "mpc": (4,), "robust_lp": (4, 4), "sparse_qp": (12, 6)}


def layer_of(name, **keywords):
    case = BUILDERS[name](*SMALL[name])
    return case, lc.export(case.problem, "torch", parameters=case.parameters, variables=case.variables, **keywords)


def by(layer, way, arrays, cotangents=None, **changes):
    """Outputs and gradients with the short way `way`, None for the general one."""
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    kept, layer._bound.quick = layer._bound.quick, way
    try:
        outputs = layer(*tensors, **changes)
    finally:
        layer._bound.quick = kept
    rng = np.random.default_rng(1)
    cotangents = cotangents or [torch.tensor(rng.standard_normal(o.shape)) for o in outputs]
    gradients = torch.autograd.grad(outputs, tensors, cotangents)
    return outputs[0].grad_fn.name(), [t.detach().numpy() for t in (*outputs, *gradients)]


@pytest.mark.parametrize("solver", ["auto", "lanes"])
@pytest.mark.parametrize("name", SMALL)
def test_the_bits_are_those_of_the_general_way(name, solver):
    """At any batch size, with parameters that the batch shares, and with any number of threads."""
    case, layer = layer_of(name, solver=solver)
    short = layer._bound.quick
    assert short is not None
    for batch, shared in ((1, False), (11, False), (11, True)):
        arrays = case.sample(batch, np.random.default_rng(batch))
        if shared and len(arrays) > 1:  # the others stay near one instance, so that all can be solved
            noise = np.random.default_rng(0)
            arrays = [a[0] if k == 0 else a[:1] * (1 + 1e-3 * noise.uniform(size=a.shape)) for k, a in enumerate(arrays)]
        (node, fast), (_, slow) = by(layer, short, arrays), by(layer, None, arrays)
        assert "_Node" in node
        short.threads = 3
        again = by(layer, short, arrays)[1]
        short.threads = 1
        for a, b, c in zip(fast, slow, again, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("scale", [1e-4, 1e5])
def test_data_far_from_unit_size(scale):
    """Instances that are equilibrated stand beside others that are not."""
    case, layer = layer_of("portfolio_socp")
    arrays = case.sample(6, np.random.default_rng(0))
    arrays[0][::2] *= scale
    (_, fast), (_, slow) = by(layer, layer._bound.quick, arrays), by(layer, None, arrays)
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(a, b)


def test_second_derivatives_and_many_cotangents():
    """They go the general way from the point that the short way found."""
    case, layer = layer_of("mpc")
    tensors = [torch.tensor(a, requires_grad=True) for a in case.sample(3, np.random.default_rng(3))]
    found = []
    for way in (layer._bound.quick, None):
        layer._bound.quick = way
        (u,) = layer(*tensors)
        first = torch.autograd.grad(u.square().sum(), tensors, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
        basis = torch.eye(u.numel(), dtype=torch.float64).reshape(-1, *u.shape)[:4]
        rows = torch.autograd.grad(layer(*tensors), tensors, [basis], is_grads_batched=True)
        found.append([t.detach().numpy() for t in (*first, *second, *rows)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_what_a_gradient_is_asked_for():
    """Parameters without a gradient, cotangents that lie anyhow, graphs that are kept, and single precision."""
    case, layer = layer_of("qp")
    arrays = case.sample(5, np.random.default_rng(5))
    everything = by(layer, layer._bound.quick, arrays, [torch.ones(5, 8, dtype=torch.float64)])[1][1:]
    tensors = [torch.tensor(a, requires_grad=k in (0, 3)) for k, a in enumerate(arrays)]
    (x,) = layer(*tensors)
    for cotangent in (torch.ones(8, 5, dtype=torch.float64).T, torch.ones((), dtype=torch.float64).expand(5, 8)):
        got = torch.autograd.grad(x, [tensors[0], tensors[3]], cotangent, retain_graph=True)
        np.testing.assert_array_equal(got[0], everything[0])
        np.testing.assert_array_equal(got[1], everything[3])
    negative = torch.autograd.grad(x, [tensors[0]], torch._neg_view(torch.ones(5, 8, dtype=torch.float64)), retain_graph=True)[0]
    np.testing.assert_array_equal(negative, -everything[0])
    single = [torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in arrays]
    (y,) = layer(*single)
    assert y.dtype is torch.float32
    assert "_Node" in y.grad_fn.next_functions[0][0].name()
    y.sum().backward()
    np.testing.assert_allclose(single[0].grad, everything[0], rtol=1e-3, atol=1e-4)


def test_numbers_that_are_not_numbers_and_broken_promises():
    """They are found, named and raised as ever, and flagged where that is asked for."""
    case, layer = layer_of("portfolio_socp")
    arrays = case.sample(4, np.random.default_rng(4))
    bad = [a.copy() for a in arrays]
    bad[1][2, 0, 0] = np.nan
    with pytest.raises(NonFiniteInputError, match="batch index"):
        layer(*map(torch.tensor, bad))
    bad[1][2, 0, 0] = np.inf
    with pytest.raises(NonFiniteInputError):
        layer(*map(torch.tensor, bad))
    lower = [a.copy() for a in arrays]
    lower[3][1] = -0.1
    with pytest.raises(ParameterDomainError):
        layer(*map(torch.tensor, lower))
    flagged = layer_of("portfolio_socp", on_error="flag")[1]
    tensors = [torch.tensor(a, requires_grad=True) for a in bad]
    (w,) = flagged(*tensors)
    assert w.isnan().all(dim=1).tolist() == [False, False, True, False]
    gradient = torch.autograd.grad(w.nansum(), tensors)[0]
    assert gradient[2].eq(0).all()
    assert gradient[0].ne(0).any()


def test_instances_without_a_solution_send_the_batch_the_general_way():
    """Their neighbors keep their bits."""
    x, b = cp.Variable(3), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + cp.sum(x)), [x[0] + x[1] <= b[0], x[0] + x[1] >= b[1], cp.norm(x) <= 3])
    layer = lc.export(problem, "torch", parameters=[b], variables=[x], on_error="flag")
    good, mixed = torch.tensor([[2.0, 1.0], [1.5, 0.5]], dtype=torch.float64), torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    (alone,), (some,) = layer(good), layer(mixed)
    assert some[1].isnan().all()
    np.testing.assert_array_equal(alone[0], some[0])
    layer._bound.quick.pause = 0
    (again,) = layer(good)
    np.testing.assert_array_equal(alone, again)


def test_what_is_dropped_is_freed():
    """Outputs, their graph and the factors die with the last reference, without the collector."""
    case, layer = layer_of("lp")
    tensors = [torch.tensor(a, requires_grad=True) for a in case.sample(3, np.random.default_rng(0))]
    gc.collect()
    gc.disable()
    try:
        (x,) = layer(*tensors)
        passage = weakref.ref(x.grad_fn.found)
        x.sum().backward()
        del x
        assert passage() is None
    finally:
        gc.enable()


def test_outputs_may_be_written_to():
    """Each output is its own memory, and no later call writes there."""
    case, layer = layer_of("sparsemax")
    arrays = case.sample(3, np.random.default_rng(0))
    (first,) = layer(torch.tensor(arrays[0]))
    kept = first.clone()
    (second,) = layer(torch.tensor(2 * arrays[0]))
    np.testing.assert_array_equal(first, kept)
    first.zero_()
    assert second.abs().sum() > 0


@pytest.mark.parametrize("name", ["portfolio_qp", "qp"])
def test_another_default_device(name):
    """What the kernels write to lies on the host."""
    case, layer = layer_of(name)
    arrays = case.sample(3, np.random.default_rng(0))
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    want = layer(*tensors)
    with torch.device("meta"):
        found = layer(*tensors)
        gradients = torch.autograd.grad(found[0], tensors, torch.ones_like(want[0]), allow_unused=True)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    for a, b in zip(gradients, torch.autograd.grad(want[0], tensors, torch.ones_like(want[0]), allow_unused=True), strict=True):
        assert torch.equal(a, b) if a is not None and b is not None else a is b


@pytest.mark.parametrize("name", ["qp", "lp"])
def test_saved_tensors_that_were_moved(name):
    """What hooks for saved tensors bring back lies elsewhere, or in another order; gradients are the same."""
    case, layer = layer_of(name)
    arrays = case.sample(3, np.random.default_rng(0))
    expected, cotangent = None, None

    def transposed(t):
        return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t.clone()

    for pack in (None, lambda t: t.clone(), transposed):
        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        if pack is None:
            (x,) = layer(*tensors)
        else:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                (x,) = layer(*tensors)
        cotangent = torch.randn_like(x) if cotangent is None else cotangent
        found = torch.autograd.grad(x, tensors, cotangent)
        for a, b in zip(found, expected or found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
        expected = expected or found


def test_parameters_written_to_after_the_call():
    """The way back reads the parameters again: autograd refuses where they were written to."""
    case, layer = layer_of("qp")
    tensors = [torch.tensor(a, requires_grad=True) for a in case.sample(3, np.random.default_rng(0))]
    (x,) = layer(*tensors)
    with torch.no_grad():
        tensors[0].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_halves_of_the_data_that_the_batch_shares():
    """Where equalities are shared and inequalities are not, or the other way round, the batch is its instances."""
    case, layer = layer_of("qp")
    arrays = case.sample(4, np.random.default_rng(0))
    for shared in ([4, 5], [2, 3], [0], [2, 3, 4, 5]):
        given = [torch.tensor(a[0] if k in shared else a, requires_grad=True) for k, a in enumerate(arrays)]
        given[3] = torch.tensor(arrays[3] + 10.0 if 3 not in shared else arrays[3][0] + 10.0, requires_grad=True)
        given[5] = torch.tensor(0.0 * arrays[5] if 5 not in shared else 0.0 * arrays[5][0], requires_grad=True)
        (x,) = layer(*given)
        gradients = torch.autograd.grad(x.sum(), given)
        sums = [torch.zeros_like(t) for t in given]
        for i in range(4):
            single = [(t if k in shared else t[i]).detach().requires_grad_() for k, t in enumerate(given)]
            (y,) = layer(*single)
            torch.testing.assert_close(y, x[i], rtol=1e-9, atol=1e-10)
            for k, g in enumerate(torch.autograd.grad(y.sum(), single)):
                (sums[k] if k in shared else sums[k][i]).add_(g)
        for a, b in zip(gradients, sums, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
