"""Rows with two bounds, QPs by name, and limits of the dense engine."""

import time

import numpy as np
import pytest
import torch

import layercompiler as lc
from layercompiler.errors import BuildError
from layercompiler.status import Status

RNG = np.random.default_rng(5)
N, M = 6, 9
ROOT, P, G = RNG.standard_normal((4, N, N)), RNG.standard_normal((4, N)), RNG.standard_normal((4, M, N))
Q = ROOT @ ROOT.swapaxes(1, 2) + np.eye(N)
HIGH = RNG.uniform(0.05, 0.3, (4, M))
LOW = -RNG.uniform(0.05, 0.3, (4, M))


def test_agrees_with_doubled_rows():
    both = lc.compile(lc.QP(N, M, two_sided=True), variables=["x", "z", "value"])
    doubled = lc.compile(lc.QP(N, 2 * M), variables=["x", "z", "value"])
    x, z, value = both.evaluate([Q, P, G, HIGH, LOW]).outputs
    x2, z2, value2 = doubled.evaluate([Q, P, np.concatenate([G, -G], 1), np.concatenate([HIGH, -LOW], 1)]).outputs
    assert (z2[:, M:] > 1e-3).any() and (z2[:, :M] > 1e-3).any()  # both sides are active somewhere
    for a, b in ((x, x2), (z, z2[:, :M] - z2[:, M:]), (value, value2)):
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("solver", ["auto", "lanes", "clarabel"])
def test_gradients(solver):
    layer = lc.export(lc.QP(N, M, two_sided=True), "torch", variables=["x", "z"], solver=solver)
    data = [torch.tensor(a[0], requires_grad=True) for a in (Q, P, G, HIGH, LOW)]
    symmetric = lambda Q, *rest: layer(0.5 * (Q + Q.T), *rest)  # noqa: E731
    torch.autograd.gradcheck(symmetric, data, atol=1e-5, rtol=1e-5)


def test_by_name():
    named = lc.export(lc.QP(Q=Q[0], p=P[0], G=G[0], h=HIGH[0], l=LOW[0]), "numpy", parameters=["h", "l"])
    sized = lc.export(lc.QP(N, M, two_sided=True), "numpy")
    np.testing.assert_allclose(named(HIGH[0], LOW[0])[0], sized(Q[0], P[0], G[0], HIGH[0], LOW[0])[0], atol=1e-10)
    with pytest.raises(BuildError, match="arrays"):
        lc.QP(Q[0], p=P[0], c=P[0])
    with pytest.raises(BuildError, match="l and h"):
        lc.QP(Q[0], P[0], G[0], l=LOW[0])
    with pytest.raises(BuildError, match="sizes"):
        lc.QP(3, 2, 1, 1)


def test_saves(tmp_path):
    compiled = lc.compile(lc.QP(N, M, two_sided=True))
    compiled.save(tmp_path / "qp.lc")
    again = lc.load(tmp_path / "qp.lc")
    np.testing.assert_array_equal(again.solve(Q, P, G, HIGH, LOW).outputs[0], compiled.solve(Q, P, G, HIGH, LOW).outputs[0])


def test_limits_do_not_choose_the_engine():
    compiled = lc.compile(lc.QP(N, M))
    free, timed = (compiled.solve(Q, P, G, HIGH, options=o) for o in ({}, {"time_limit": 60.0}))
    assert set(timed.info.engine) == {"dense_qp"}
    np.testing.assert_array_equal(free.outputs[0], timed.outputs[0])


def test_time_limit_is_kept():
    rng = np.random.default_rng(0)
    n, batch = 60, 256
    root = rng.standard_normal((batch, n, n)) / 8
    data = root @ root.swapaxes(1, 2) + np.eye(n), rng.standard_normal((batch, n)), rng.standard_normal((batch, n, n)), np.ones((batch, n))
    compiled = lc.compile(lc.QP(n, n), on_error="flag", options={"workers": 1})
    began = time.perf_counter()
    whole = compiled.solve(*data)
    took = time.perf_counter() - began
    part = compiled.solve(*data, options={"time_limit": 0.05 * took, "workers": 1})
    limited = part.status == Status.TIME_LIMIT
    assert whole.info.ok.all() and limited.any() and np.isin(part.status, (Status.SOLVED, Status.TIME_LIMIT)).all()
    assert np.isnan(part.outputs[0][limited]).all()
    np.testing.assert_array_equal(part.outputs[0][~limited], whole.outputs[0][~limited])


def test_iteration_limit():
    compiled = lc.compile(lc.QP(N, M), on_error="flag")
    short, enough = (compiled.solve(Q, P, G, HIGH, options={"max_iterations": k}).status for k in (1, 100))
    assert (enough == Status.SOLVED).all() and (short == Status.ITERATION_LIMIT).all()
