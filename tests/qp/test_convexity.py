"""Objectives that are not convex are told, by every engine and whatever the way to it."""

import numpy as np
import pytest

import layercompiler as lc
from layercompiler.errors import BuildError, SolveError
from layercompiler.status import Status

BOX = np.vstack([np.eye(2), -np.eye(2)]), np.ones(4)
SADDLE = np.diag([1.0, -1.0])
ENGINES = ("auto", "dense_qp", "lanes", "clarabel", "scs", "interior_point")
LIMITS = ({}, {"time_limit": 60.0}, {"max_iterations": 50}, {"smoothing": 1e-3})


@pytest.mark.parametrize("options", LIMITS, ids=str)
@pytest.mark.parametrize("solver", ENGINES)
def test_saddles_are_no_solutions(solver, options):
    compiled = lc.compile(lc.QP(2, 4), solver=solver, on_error="flag", options=options)
    Q = np.stack([np.eye(2), SADDLE, np.eye(2)])
    p = np.array([[0.3, -0.2]] * 3)
    evaluation = compiled.evaluate([Q, p, *BOX])
    assert evaluation.info.status.tolist() == [Status.SOLVED, Status.NOT_CONVEX, Status.SOLVED]
    assert np.isnan(evaluation.outputs[0][1]).all()
    gradients = evaluation.vjp([np.ones((3, 2))])
    assert not gradients[1][1].any() and gradients[1][0].any()


def test_without_kernels(monkeypatch):
    monkeypatch.setattr("layercompiler.kernels.available", lambda: False)
    compiled = lc.compile(lc.QP(2, 4))
    assert "kernels were not compiled" in compiled.report()
    with pytest.raises(SolveError, match="not convex"):
        compiled.solve(SADDLE, np.zeros(2), *BOX)


def test_warm_starts_hide_nothing():
    compiled = lc.compile(lc.QP(2, 4), on_error="flag")
    start = compiled.solve(np.eye(2), [0.0, 3.0], *BOX)
    assert compiled.solve(SADDLE, [0.0, 3.0], *BOX, warm_start=start).status == Status.NOT_CONVEX


def test_constant_matrices_are_checked_when_built():
    with pytest.raises(BuildError, match="positive semidefinite"):
        lc.compile(lc.QP(SADDLE, np.zeros(2), *BOX), parameters=["p"])


@pytest.mark.parametrize("solver", ["dense_qp", "lanes", "interior_point"])
def test_any_negative_curvature(solver):
    rng = np.random.default_rng(3)
    for n in (1, 2, 5, 20, 40):
        for rows in (0, n // 2, 3 * n):
            compiled = lc.compile(lc.QP(n, rows + 2 * n), solver=solver, on_error="flag")
            basis = np.linalg.qr(rng.standard_normal((8, n, n)))[0]
            size = rng.uniform(0.1, 1.0, (8, n))
            size[:, 0] = [-1.0, -0.1, -1e-2, -1e-3, -1e-4, 0.0, 1e-8, 0.1]  # of the curvatures, one of each matrix
            Q = np.einsum("bij,bj,bkj->bik", basis, size, basis)
            G = np.concatenate([rng.standard_normal((8, rows, n)), np.tile(np.vstack([np.eye(n), -np.eye(n)]), (8, 1, 1))], axis=1)
            h = np.concatenate([rng.uniform(0.1, 1.0, (8, rows)), np.ones((8, 2 * n))], axis=1)
            status = compiled.solve(Q, rng.standard_normal((8, n)), G, h).status
            assert (status[:5] == Status.NOT_CONVEX).all() and (status[5:] == Status.SOLVED).all(), (n, rows, status)
