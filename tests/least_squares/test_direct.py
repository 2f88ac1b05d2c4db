"""The short way of torch: the bits of the general way, and left wherever more than plain reverse mode is asked for."""

import copy
import pickle
from functools import cache

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

import layercompiler as lc
from layercompiler import kernels
from layercompiler.errors import DerivativeError, NonFiniteInputError, SolveError, UnsupportedTransformError
from layercompiler.torch import direct
from layercompiler.torch.least_squares import LeastSquaresLayer
from tests.least_squares.problems import curve_fit, curves, pose_graph

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")
TIMES = torch.linspace(0, 4, 20, dtype=torch.float64)


def decay(x, b, y, w):
    """Two variables, and a weight."""
    return w * (x[0] * torch.exp(-b * TIMES) + x[1] - y)


@cache
def layer(on_error="raise"):
    variables = {"x": lc.Euclidean(2, init=[1.0, 0.0]), "b": lc.Euclidean(init=1.0)}
    problem = lc.LeastSquares(variables, [lc.factor(decay, on=("x", "b"), data=("y", "w"))], {"y": (20,), "w": (20,)}, outputs=("b", "x"))
    return lc.export(problem, "torch", on_error=on_error)


def numbers(*batch, seed=0):
    rng = np.random.default_rng(seed)
    a, b, c = rng.uniform([[1.0], [0.5], [-0.5]], [[3.0], [1.5], [0.5]], (3, int(np.prod(batch)))).reshape(3, *batch, 1)
    y = torch.tensor(a * np.exp(-b * TIMES.numpy()) + c + 0.2 * rng.standard_normal((*batch, 20)))
    return y, torch.tensor(rng.uniform(0.5, 1.5, 20))


@pytest.fixture
def taken(monkeypatch):
    """How many calls went the short way to the end."""
    count = []
    whole = direct.Direct.__call__

    def call(self, *arguments):
        found = whole(self, *arguments)
        count.extend([1] if found is not None else [])
        return found

    monkeypatch.setattr(direct.Direct, "__call__", call)
    return count


def both(call, tensors, monkeypatch, taken):
    """Outputs and gradients by the short way and by the general one."""
    found = []
    for short in (True, False):
        if not short:
            monkeypatch.setattr(LeastSquaresLayer, "_directly", lambda *_: None)
        theta = [t.detach().clone().requires_grad_() for t in tensors]
        outputs = call(*theta)
        scale = torch.arange(1, 1 + sum(x.numel() for x in outputs), dtype=torch.float64).cos()
        loss = sum((x.reshape(-1) ** 2 * s).sum() for x, s in zip(outputs, scale.split([x.numel() for x in outputs]), strict=True))
        found.append([*(x.detach() for x in outputs), *torch.autograd.grad(loss, theta)])
    monkeypatch.undo()
    assert len(taken) == 1
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("on_error", ["raise", "flag"])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 35)])
def test_same_bits(batch, on_error, monkeypatch, taken):
    y, w = numbers(*batch)
    both(layer(on_error), [y, w], monkeypatch, taken)
    if batch == (3,):
        taken.clear()
        monkeypatch.undo()
    # the weight of every instance its own
    own = w.expand(*batch, 20).contiguous()
    with monkeypatch.context() as patch:
        calls = []
        whole = direct.Direct.__call__
        patch.setattr(direct.Direct, "__call__", lambda s, *a: calls.append(1) or whole(s, *a))
        assert torch.equal(layer(on_error)(y, own)[1], layer(on_error)(y, w)[1]) and len(calls) == 2


@pytest.mark.parametrize("group", ["SE2", "SO3"])
def test_same_bits_of_groups_from_a_start(group, monkeypatch, taken):
    problem, measured, start = pose_graph(group, 12, 3, 0.3, robust=lc.Huber("r"))
    w = torch.ones(measured.shape[1], problem.parameters["w"][1], dtype=torch.float64)
    graph = lc.export(problem, "torch")
    tensors = [torch.tensor(measured), w, torch.tensor(0.5, dtype=torch.float64)]
    both(lambda *theta: graph(*theta, init={"X": start}), tensors, monkeypatch, taken)
    assert graph(*tensors, init={"X": start[None]})[0].shape == (1, 3, *start.shape[1:])  # a start may widen the batch


def test_other_dtypes_and_names(taken):
    y, w = numbers(2)
    want = layer()(y.float().double(), w)
    found = layer()(w=w.float().requires_grad_(), y=y.float())
    assert len(taken) == 2 and found[0].dtype is torch.float32 and found[0].requires_grad
    torch.testing.assert_close(found[1].double(), layer()(y.float().double(), w.float().double())[1].float().double(), rtol=0, atol=0)
    assert want[0].dtype is torch.float64


def test_transforms_and_modes_go_the_general_way(taken):
    y, w = numbers(3)
    want = torch.autograd.functional.jacobian(lambda y: layer()(y, w)[0], y[0])
    taken.clear()
    torch.testing.assert_close(torch.func.jacrev(lambda y: layer()(y, w)[0])(y[0]), want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.func.vmap(lambda y: layer()(y, w)[1])(y), layer()(y, w)[1], rtol=1e-12, atol=1e-12)
    taken.clear()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer()(forward_ad.make_dual(y[0], torch.ones_like(y[0])), w)[0]).tangent
    torch.testing.assert_close(tangent, want.sum(), rtol=1e-9, atol=1e-12)

    class Own(torch.Tensor):
        pass

    layer()(y.as_subclass(Own), w)
    layer()(y.T.contiguous().T, w)
    layer()(torch.complex(w, -y[0]).conj().imag, w)  # negated by a bit
    assert not taken


def test_second_derivatives(taken):
    y, w = numbers()

    def first(w):
        return torch.autograd.grad(layer()(y, w)[0], w, create_graph=True)[0]

    w.requires_grad_()
    g = first(w)
    assert taken and g.requires_grad
    direction = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad(g @ direction, w)
    h = 1e-5
    want = (first((w + h * direction).detach().requires_grad_()) - first((w - h * direction).detach().requires_grad_())) / (2 * h)
    torch.testing.assert_close(found, want.detach(), rtol=1e-6, atol=1e-8)


def test_many_backward_passes_of_one_solve():
    y, w = numbers(3)
    y.requires_grad_()
    b, x = layer()(y, w)
    rows = [torch.autograd.grad(x[:, k].sum(), y, retain_graph=True)[0] for k in range(2)]
    (both,) = torch.autograd.grad((x, b), y, (torch.ones_like(x), torch.zeros_like(b)))
    torch.testing.assert_close(both, rows[0] + rows[1], rtol=1e-12, atol=1e-14)


def test_tensors_that_are_written_to():
    y, w = numbers(3)
    y.requires_grad_()
    (want,) = torch.autograd.grad(layer()(y, w)[1].sum(), y)
    for given in (y, y.T.contiguous().T):
        x = layer()(given, w)[1]
        loss = x.sum()
        x.detach().mul_(2.0)
        torch.testing.assert_close(torch.autograd.grad(loss, y)[0], want, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(torch.autograd.grad(layer()(given, w)[1].mul_(2.0).sum(), y)[0], 2 * want, rtol=1e-12, atol=1e-14)
    w2 = w.clone()
    loss = layer()(y, w2)[0].sum()
    w2.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_saved_tensors_that_hooks_move(taken):
    y, w = numbers(3)
    y.requires_grad_()
    (want,) = torch.autograd.grad(layer()(y, w)[0].sum(), y)
    for pack, unpack in [(lambda t: t.float(), lambda t: t), (lambda t: t.T.contiguous().T if t.ndim == 2 else t, lambda t: t)]:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            loss = layer()(y, w)[0].sum()
        torch.testing.assert_close(torch.autograd.grad(loss, y)[0], want, rtol=1e-5, atol=1e-6)
    assert len(taken) == 3


def test_another_default_device():
    y, w = numbers(3)
    want = layer()(y, w)[0]
    with torch.device("meta"):
        assert torch.equal(layer()(y, w)[0], want)


def closure():
    held = torch.linspace(0, 4, 20, dtype=torch.float64)
    problem = lc.LeastSquares(
        {"x": lc.Euclidean(2, init=[1.0, 1.0])},
        [lc.factor(lambda x, y: x[0] * torch.exp(-x[1] * held) - y, on="x", data="y")],
        {"y": (20,)},
    )
    return held, problem


def test_what_residuals_close_over(taken):
    held, problem = closure()
    made, y = lc.export(problem, "torch"), 2 * torch.exp(-TIMES)
    made(y)
    held.mul_(2.0)
    y.requires_grad_()
    (x,) = made(y)
    torch.testing.assert_close(x, torch.tensor([2.0, 0.5], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    (found,) = torch.autograd.grad(x[1], y)
    (want,) = torch.autograd.grad(lc.export(problem, "torch")(y)[0][1], y)
    assert torch.equal(found, want)
    taken.clear()
    assert torch.equal(made(y)[0], x) and taken
    held.requires_grad_()
    for _ in range(2):
        with pytest.raises(UnsupportedTransformError, match="closes over a tensor that requires a gradient"):
            made(y)


def test_numbers_that_are_not_finite():
    y, w = numbers(3)
    layer(), layer("flag")
    y[1, 4] = torch.nan
    with pytest.raises(NonFiniteInputError, match="batch index"):
        layer()(y, w)
    y.requires_grad_()
    b, _ = layer("flag")(y, w)
    assert b.isnan().tolist() == [False, True, False]
    b[::2].sum().backward()
    assert y.grad is not None and (y.grad[1] == 0).all() and (y.grad[0] != 0).any()
    inner = layer("flag")._modules.get("inner", layer("flag"))
    inner.prepared.short.pause = 0
    huge = torch.full((20,), 1e308, dtype=torch.float64)  # finite, though their sum is not
    status = layer("flag").solve(huge, w).status
    assert (layer("flag")(huge, w)[0].isnan().item()) == (status.item() != lc.Status.SOLVED)


def test_a_cotangent_that_is_not_finite_is_not_lost(taken):
    y, w = numbers(4)
    for given in (y, y.T.contiguous().T):
        given = given.detach().requires_grad_()
        b, _ = layer()(given, w)
        (want,) = torch.autograd.grad(b, given, torch.ones(4, dtype=torch.float64), retain_graph=True)
        (found,) = torch.autograd.grad(b, given, torch.tensor([1.0, torch.nan, 1.0, 1.0], dtype=torch.float64))
        assert found[1].isnan().all() and torch.equal(found[[0, 2, 3]], want[[0, 2, 3]])
    assert len(taken) == 1


def test_instances_without_a_solution():
    few = {"max_iterations": 1}
    for on_error in ("raise", "flag"):
        made = lc.export(curve_fit(), "torch", on_error=on_error, options=few)
        y = torch.tensor(curves(3, 0.3)).requires_grad_()
        for _ in range(2):
            if on_error == "raise":
                with pytest.raises(SolveError):
                    made(y)
            else:
                assert made(y)[0].isnan().all()


def test_solutions_without_a_derivative():
    problem = lc.LeastSquares({"x": lc.Euclidean(init=1.0)}, [lc.factor(lambda x, a: x * x * a - a, on="x", data="a")], {"a": ()})
    flat = lc.LeastSquares({"x": lc.Euclidean(2, init=[1.0, 0.0])}, [lc.factor(lambda x, a: x[:1] - a, on="x", data="a")], {"a": (1,)})
    a = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        x = lc.export(problem, "torch")(a[0])[0]
        assert abs(float(torch.autograd.grad(x, a)[0])) <= 1e-12
    made = lc.export(flat, "torch")
    for _ in range(2):
        (x,) = made(a)
        with pytest.raises(DerivativeError, match="not positive definite"):
            x.sum().backward()
    flagged = lc.export(flat, "torch", on_error="flag")
    for _ in range(2):
        assert flagged(a)[0].isnan().all() and not flagged(a.detach())[0].isnan().any()


def test_a_first_call_inside_of_a_transform(taken):
    y = torch.tensor(curves(2, 0.1))
    made = lc.export(curve_fit(), "torch")
    found = torch.func.vmap(lambda y: made(y)[0])(y)
    assert not taken
    torch.testing.assert_close(found, made(y)[0], rtol=1e-12, atol=1e-12)
    assert taken


def test_copies(taken):
    y = torch.tensor(curves(2, 0.1))
    made = lc.export(curve_fit(), "torch")
    want = made(y)[0]
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other(y)[0], want)
    assert len(taken) == 3


def test_empty_batches(taken):
    _, w = numbers(1)
    y = torch.zeros(0, 20, dtype=torch.float64, requires_grad=True)
    b, x = layer()(y, w)
    assert b.shape == (0,) and x.shape == (0, 2) and not taken
    x.sum().backward()
    assert y.grad is not None and y.grad.shape == y.shape
