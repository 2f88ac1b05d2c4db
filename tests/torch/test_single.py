"""precision="single": float32 tensors of programs written as matrices are solved in float32, with float64 wherever that is not safe."""

import numpy as np
import pytest

import layercompiler as lc
from layercompiler import kernels
from layercompiler.errors import OptionError, SolveError
from tests.qp import families

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")
OUTPUTS = ["x", "y", "z"]


def layers(on_error="raise"):
    """One that solves in float32, and one in float64."""
    settings = [{"precision": "single"}, {}]
    return [lc.export(lc.QP(7, 6, 2), "torch", variables=OUTPUTS, on_error=on_error, options=s) for s in settings]


def problem(shared="", kind="std", count=20, dtype=torch.float32):
    arrays = [a[0] if k in shared else a for k, a in zip("QpGhAb", families.batch(kind, 7, 6, 2, count), strict=True)]
    if shared:
        arrays[3], arrays[5] = np.abs(arrays[3]) + 0.1, 0.0 * arrays[5]
    return [torch.tensor(a, dtype=torch.float32).to(dtype).requires_grad_() for a in arrays]


def pulled(layer, given, create_graph=False):
    outputs = layer(*given)
    rng = np.random.default_rng(0)
    w = [torch.tensor(rng.standard_normal(o.shape), dtype=o.dtype) for o in outputs]
    return outputs, torch.autograd.grad(outputs, given, w, create_graph=create_graph)


def close(got, expected, tolerance):
    size = max(float(e.detach().abs().max()) for e in expected if e.numel())
    for a, e in zip(got, expected, strict=True):
        assert a.dtype == torch.float32 and a.shape == e.shape
        assert a.numel() == 0 or float((a - e).detach().abs().max()) <= tolerance * size


@pytest.mark.parametrize("shared", ["", "Q", "QGA", "hb"])
@pytest.mark.parametrize("kind", ["std", "ill", "optnet"])
def test_outputs_and_gradients_are_those_of_float64(shared, kind):
    single, double = layers()
    given = problem(shared, kind)
    outputs, gradients = pulled(single, given)
    assert type(outputs[0].grad_fn).__name__ == "_NodeBackward" and outputs[0].grad_fn is not None
    wide = [g.detach().double().requires_grad_() for g in given]
    expected, pulled_back = pulled(double, wide)
    for a, e in zip(outputs, expected, strict=True):
        close([a], [e], 1e-4)
    close(gradients, pulled_back, 1e-3)
    if kind == "std":  # not the rounded numbers of float64
        assert not torch.equal(outputs[0], expected[0].float())


@pytest.mark.parametrize("shared", ["", "QGA"])
def test_second_derivatives_are_those_of_float64(shared):
    single, double = layers()
    given = problem(shared)
    seconds = []
    for layer, t in ((single, given), (double, [g.detach().double().requires_grad_() for g in given])):
        first = pulled(layer, t, create_graph=True)[1]
        seconds.append(torch.autograd.grad(sum((g**2).sum() for g in first), t))
    close(*seconds, 1e-5)


def test_float64_tensors_and_other_layers_are_as_they_were():
    single, double = layers()
    given = problem(dtype=torch.float64)
    for a, e in zip(*(pulled(layer, given)[1] for layer in (single, double)), strict=True):
        assert torch.equal(a, e)
    given = problem()
    for a, e in zip(pulled(double, given)[0], double(*[g.double() for g in given]), strict=True):
        assert torch.equal(a, e.float())


def test_failures_end_as_in_float64():
    single, _ = layers()
    given = problem()
    with torch.no_grad():
        given[2][3, 1] = -given[2][3, 0]
        given[3][3, 1] = -given[3][3, 0] - 1.0
    with pytest.raises(SolveError, match="infeasible"):
        single(*given)
    outputs, gradients = pulled(layers("flag")[0], given)
    assert outputs[0][3].isnan().all() and not outputs[0][[0, 1, 2, 4]].isnan().any()
    assert all(bool(g[3].eq(0).all()) and bool(g.isfinite().all()) for g in gradients)


def test_training_in_float32_takes_the_short_way_every_time():
    single, _ = layers()
    given = problem()
    for _ in range(3):
        outputs, gradients = pulled(single, given)
        with torch.no_grad():
            given[1].sub_(gradients[1], alpha=0.1)
        assert outputs[0].dtype is torch.float32
    assert single._bound.quick.single.pause == 0


def test_the_report_says_so_and_unknown_precisions_are_refused():
    single, double = layers()
    assert "float32" in single.report() and "float32" not in double.report()
    with pytest.raises(OptionError, match="unknown precision"):
        lc.export(lc.QP(2, 1), "torch", options={"precision": "half"})
