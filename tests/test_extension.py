"""Adding an engine or a cone takes one file with a registration, from outside of the package."""

from dataclasses import dataclass, replace

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler import cones, errors
from layercompiler.cones import Cone, Product, Projection, SecondOrder
from layercompiler.cones.base import Expansion, dense_expansion
from layercompiler.programs.cone import Structure
from layercompiler.solvers import Engine, engine, engine_names, register
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


# A cone ------------------------------------------------------------------------------------------------------------------

TURN = np.array([[1, 1, 0], [1, -1, 0], [0, 0, np.sqrt(2)]]) / np.sqrt(2)  # symmetric and orthogonal


@cones.register
@dataclass(frozen=True)
class Rotated(Cone):
    """{(a, b, c): 2 a b >= c^2, a, b >= 0}, the second-order cone turned by 45 degrees; self-dual."""

    name = "rotated"
    dim = 3

    @property
    def expansion(self) -> Expansion:
        return dense_expansion(3)

    def project_dual(self, v: np.ndarray) -> Projection:
        return RotatedProjection(v)


class RotatedProjection(Projection):
    def __init__(self, v: np.ndarray) -> None:
        self.v, self.straight = v, SecondOrder(3).project_dual(v @ TURN)
        self.y = self.straight.y @ TURN

    @property
    def smooth(self) -> np.ndarray:
        return self.straight.smooth

    def apply(self, u: np.ndarray) -> np.ndarray:
        return self.straight.apply(u @ TURN) @ TURN

    def second(self, u: np.ndarray, w: np.ndarray) -> np.ndarray:
        return self.straight.second(u @ TURN, w @ TURN) @ TURN

    def expansion_values(self) -> tuple[np.ndarray, np.ndarray]:
        D = np.stack([self.apply(np.broadcast_to(e, self.v.shape)) for e in np.eye(3)], axis=-1)
        w, Q = np.linalg.eigh(D)
        w = np.clip(w, 0, 1)
        return (Q * np.sqrt(w)[..., None, :]).reshape(*self.v.shape[:2], 9), w - 1


@register
class Turned(Engine):
    """Solves programs with rotated cones by turning their rows for Clarabel."""

    name = "turned"
    cones = frozenset({"zero", "nonnegative", "rotated"})

    def solve_one(self, data, tolerance, options, deadline):
        P, q, d, A, b = data
        s = self.structure
        R, start = np.eye(s.m), 0
        for cone, count in s.cones.blocks:
            for at in range(start, start + count * cone.dim, cone.dim):
                if cone.name == "rotated":
                    R[at : at + 3, at : at + 3] = TURN
            start += count * cone.dim
        full = np.zeros((s.m, s.n))
        full[s.A_rows, s.A_cols] = A
        rows, cols = np.indices(full.shape).reshape(2, -1)
        blocks = tuple((SecondOrder(3) if cone.name == "rotated" else cone, count) for cone, count in s.cones.blocks)
        straight = engine("clarabel")(Structure(s.n, s.P_rows, s.P_cols, rows, cols, Product(blocks)))
        x, y, slack, *said = straight.solve_one((P, q, d, (R @ full).ravel(), R @ b), tolerance, options, deadline)
        return x, R @ y, R @ slack, *said


def rotated():
    """|A x - c|^2 <= 2 t u as a rotated cone, and as CVXPY writes it: two compiled problems that must agree."""
    A, x, p = np.array([[1.0, 2.0]]), cp.Variable(2, name="x"), cp.Parameter(3, name="p")
    cone = cp.SOC((p[0] + x[0] + p[1] + 1) / np.sqrt(2), cp.hstack([(p[0] + x[0] - p[1] - 1) / np.sqrt(2), (A @ x)[0] - p[2]]))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - np.array([-3.0, 1.0])) + x[0]), [cone, cp.sum(x) <= 4])
    straight = lc.compile(problem, parameters=[p], variables=[x])
    program, s = straight.program, straight.program.structure
    blocks = tuple((Rotated(), count) if isinstance(cone, SecondOrder) else (cone, count) for cone, count in s.cones.blocks)
    at = next(rows for rows, (cone, _) in zip(s.cones.slices, s.cones.blocks, strict=True) if isinstance(cone, SecondOrder))
    R = np.eye(s.m)
    R[at, at] = TURN
    rows, cols = np.indices((s.m, s.n)).reshape(2, -1)
    full = np.zeros((s.m, s.n))
    full[s.A_rows, s.A_cols] = program.A.constant
    assert not program.A.blocks
    turned = replace(
        program,
        structure=Structure(s.n, s.P_rows, s.P_cols, rows, cols, Product(blocks)),
        A=replace(program.A, constant=(R @ full).ravel()),
        b=replace(program.b, constant=R @ program.b.constant, blocks=tuple(map(lambda block: through(R, block), program.b.blocks))),
    )
    return straight, lc.CompiledProblem(turned, "turned")


def through(R, block):
    """R times one block of an affine map."""
    dense = np.zeros((len(R), block.size))
    dense[block.rows, block.cols] = block.coefs
    dense = R @ dense
    rows, cols = np.nonzero(dense)
    return replace(block, rows=rows, cols=cols, coefs=dense[rows, cols])


def test_a_cone_from_outside_is_refined_differentiated_and_saved(tmp_path):
    straight, turned = rotated()
    theta = [np.array([[0.5, 1.0, -0.3], [1.0, 0.2, 0.8], [4.0, 9.0, 0.1]])]
    rng = np.random.default_rng(0)
    g, h = [rng.standard_normal((3, 2))], [rng.standard_normal((3, 3))]
    turned.save(tmp_path / "layer.npz")
    expected = straight.evaluate(theta)
    for compiled in (turned, lc.load(tmp_path / "layer.npz")):
        evaluation = compiled.evaluate(theta)
        assert set(evaluation.info.engine) == {"turned"} and (evaluation.info.residual <= 1e-12).all()
        assert not evaluation.info.degenerate.any()
        for a, b in (
            (evaluation.outputs, expected.outputs),
            (evaluation.vjp(g), expected.vjp(g)),
            (evaluation.jvp(h), expected.jvp(h)),
            (evaluation.hvp(g, h), expected.hvp(g, h)),
            (evaluation.second(h, h), expected.second(h, h)),
        ):
            np.testing.assert_allclose(a[0], b[0], atol=1e-8)


def test_engines_are_chosen_by_the_cones_they_have(monkeypatch):
    _, turned = rotated()
    assert lc.CompiledProblem(turned.program).search.attempts[0][0].name == "turned"
    for name in ("clarabel", "scs"):
        with pytest.raises(errors.UnsupportedConeError, match=r"cannot solve this problem(?s:.*)rotated"):
            lc.CompiledProblem(turned.program, name)
    monkeypatch.delitem(engine.__globals__["_registry"], "turned")
    with pytest.raises(errors.UnsupportedConeError, match=r"no installed engine(?s:.*)rotated"):
        lc.CompiledProblem(turned.program)
