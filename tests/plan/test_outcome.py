"""What the express way answers is what the general way answers, to rounding and in every derivative."""

import numpy as np
import pytest

from layercompiler import kernels
from layercompiler.errors import SolveError
from layercompiler.plan.express import ExpressEvaluation
from tests.jax.problems import KINDS, exported

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")


def made(kind, batch=(3,), shared=(), **settings):
    layer, data = exported(kind, "numpy", **settings)
    r = np.random.default_rng(0)
    return layer.compiled, [a if i in shared else a + 0.02 * r.standard_normal((*batch, *a.shape)) for i, a in enumerate(data)]


def same(a, b, tolerance=1e-9):
    for u, v in zip(a, b, strict=True):
        assert u.shape == v.shape
        np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "shared"), [((), ()), ((1,), ()), ((3,), (1,)), ((2, 2), (0,))])
def test_outcomes_are_evaluations(kind, batch, shared):
    problem, arrays = made(kind, batch, shared)
    fast, slow = problem.outcome(arrays), problem.evaluate(arrays)
    assert isinstance(fast, ExpressEvaluation)
    same((*fast.outputs, fast.z), (*slow.outputs, slow.z))
    r = np.random.default_rng(1)
    g = [r.standard_normal(o.shape) for o in slow.outputs]
    h, k = ([r.standard_normal(a.shape) for a in arrays] for _ in range(2))
    same(fast.vjp(g), slow.vjp(g), 1e-8)
    same(fast.vjp([g[0], *[None] * (len(g) - 1)]), slow.vjp([g[0], *[None] * (len(g) - 1)]), 1e-8)
    same(fast.jvp(h), slow.jvp(h), 1e-8)
    same(fast.hvp(g, h), slow.hvp(g, h), 1e-7)
    same(fast.second(h, k), slow.second(h, k), 1e-7)


def test_what_has_no_express_way_goes_the_general_way():
    problem, (q, G, h) = made("qp")
    rows = np.stack([q, q + 0.01])  # (2, 3, n) beside (3, n): neither whole nor shared
    found = problem.outcome([rows, G, h])
    assert not isinstance(found, ExpressEvaluation)
    same(found.outputs, problem.evaluate([rows, G, h]).outputs)
    assert not isinstance(problem.outcome([q, G, h], warm_start=found.z[0]), ExpressEvaluation)
    single = problem.outcome([a.astype(np.float32) for a in (q, G, h)])
    assert isinstance(single, ExpressEvaluation)
    same(single.outputs, problem.evaluate([a.astype(np.float32) for a in (q, G, h)]).outputs)


@pytest.mark.parametrize("on_error", ["raise", "flag"])
def test_failures_are_those_of_the_general_way(on_error):
    problem, (q, G, h) = made("qp", on_error=on_error)
    G[1, 1], h[1, :2] = -G[1, 0], -1.0  # g'x <= -1 and -g'x <= -1
    if on_error == "raise":
        with pytest.raises(SolveError, match="1 of 3"):
            problem.outcome([q, G, h])
        return
    found = problem.outcome([q, G, h])
    assert np.isnan(found.outputs[0][1]).all() and np.isfinite(found.outputs[0][[0, 2]]).all()
