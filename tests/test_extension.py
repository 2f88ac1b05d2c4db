"""Adding an engine takes one file with a registration, from outside of the package."""

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler import errors
from layercompiler.solvers import Engine, engine_names, register
from layercompiler.status import Status


@register
class Toy(Engine):
    """Solves equality-constrained quadratic programs by their optimality conditions, and roughly: the plan refines."""

    name = "toy"
    cones = frozenset({"zero"})

    def solve_one(self, data, tolerance, options, deadline):
        P, q, _, A, b = data
        s = self.structure
        H, E = np.zeros((s.n, s.n)), np.zeros((s.m, s.n))
        H[s.P_rows, s.P_cols] = P
        H[s.P_cols, s.P_rows] = P
        E[s.A_rows, s.A_cols] = A
        z = np.linalg.lstsq(np.block([[H, E.T], [E, np.zeros((s.m, s.m))]]), np.r_[-q, b], rcond=None)[0]
        z += 1e-4 * np.cos(np.arange(len(z)))
        return z[: s.n], z[s.n :], np.zeros(s.m), Status.SOLVED, 1


def problem():
    x, p = cp.Variable(4, name="x"), cp.Parameter(4, name="p")
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1])


def test_an_engine_from_outside_solves_is_refined_and_differentiated():
    assert "toy" in engine_names()
    compiled = lc.compile(problem(), solver="toy")
    p = np.array([[0.1, -0.4, 2.0, 0.3], [1.0, 2.0, 3.0, 4.0]])
    evaluation = compiled.evaluate([p])
    np.testing.assert_allclose(evaluation.outputs[0], p - (p.sum(1, keepdims=True) - 1) / 4, atol=1e-12)
    assert (evaluation.info.residual <= 1e-12).all()
    assert set(evaluation.info.engine) == {"toy"}
    np.testing.assert_allclose(evaluation.vjp([np.eye(4)[:2]])[0], np.eye(4)[:2] - 0.25, atol=1e-12)


def test_an_engine_is_not_asked_for_cones_that_it_does_not_have():
    x, p = cp.Variable(2), cp.Parameter(2)
    with pytest.raises(errors.LayerCompilerError):
        lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), solver="toy")
