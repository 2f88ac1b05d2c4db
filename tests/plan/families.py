"""One small problem of every family, with outputs of every kind, at a point where the solution map is smooth."""

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import cvxpy as cp
import numpy as np

import layercompiler as lc


@dataclass(frozen=True)
class Case:
    """A problem with its parameters, its outputs, parameter values, and a random direction among them."""

    problem: cp.Problem
    parameters: list
    outputs: list
    theta: list[np.ndarray]

    def direction(self, seed):
        """Random tangents, symmetric where a parameter is, zero where it is structurally zero."""
        rng = np.random.default_rng(seed)
        out = []
        for p, t in zip(self.parameters, self.theta, strict=True):
            d = rng.standard_normal(np.shape(t))
            if any(p.attributes.get(a) for a in ("symmetric", "PSD", "NSD")):
                d = (d + d.T) / 2
            if p.attributes.get("diag"):
                d = d * np.eye(len(d))
            out.append(d * (1.0 if not p.attributes.get("pos") else t))
        return out

    def cotangents(self, evaluation, seed):
        rng = np.random.default_rng(100 + seed)
        return [rng.standard_normal(o.shape) for o in evaluation.outputs]

    def solve(self, **settings):
        """CVXPY's own solution of the same problem, at tight tolerances."""
        for p, t in zip(self.parameters, self.theta, strict=True):
            p.value = t
        tight = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
        self.problem.solve(solver="CLARABEL", **tight, **settings)
        return self.problem


def symmetric(a):
    return (a + a.T) / 2


def qp(rng):
    n = 5
    Q, q = cp.Parameter((n, n), PSD=True, name="Q"), cp.Parameter(n, name="q")
    G, h = cp.Parameter((6, n), name="G"), cp.Parameter(6, name="h")
    A, b = cp.Parameter((2, n), name="A"), cp.Parameter(2, name="b")
    x = cp.Variable(n, name="x")
    inequality, equality = G @ x <= h, A @ x == b
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, Q) + q @ x + 3.0), [inequality, equality])
    L, E, F, x0 = rng.standard_normal((n, n)), rng.standard_normal((2, n)), rng.standard_normal((6, n)), rng.standard_normal(n)
    theta = [L @ L.T + np.eye(n), 4 * rng.standard_normal(n), F, F @ x0 + 2 * rng.random(6), E, E @ x0]
    duals = [inequality.dual_variables[0], equality.dual_variables[0]]
    return Case(problem, [Q, q, G, h, A, b], [x, *duals, problem.objective, 2 * x[:2] - x[3]], theta)


def lp(rng):
    n = 4
    c, G, h = cp.Parameter(n, name="c"), cp.Parameter((7, n), name="G"), cp.Parameter(7, name="h")
    x = cp.Variable(n, name="x")
    inequality = G @ x <= h
    problem = cp.Problem(cp.Maximize(c @ x), [inequality])
    F = rng.standard_normal((7, n))
    theta = [F.T @ rng.uniform(0.2, 1, 7), F, 1 + rng.random(7)]
    return Case(problem, [c, G, h], [x, inequality.dual_variables[0], problem.objective], theta)


def least_squares(rng):
    A, b, lam = cp.Parameter((8, 4), name="A"), cp.Parameter(8, name="b"), cp.Parameter(nonneg=True, name="lam")
    x = cp.Variable(4, name="x")
    top = x <= 0.2
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + lam * cp.norm1(x)), [top])
    theta = [rng.standard_normal((8, 4)), rng.standard_normal(8), np.array(3.0)]
    return Case(problem, [A, b, lam], [x, problem.objective, top.dual_variables[0], cp.sum(x)], theta)


def socp(rng):
    n = 4
    A, b, r = cp.Parameter((6, n), name="A"), cp.Parameter(6, name="b"), cp.Parameter(pos=True, name="r")
    x, t = cp.Variable(n, name="x"), cp.Variable(name="t")
    cone, ball = cp.SOC(t, A @ x - b), cp.norm(x) <= r
    problem = cp.Problem(cp.Minimize(t + 0.1 * cp.sum(x) + 0.05 * cp.sum_squares(x)), [cone, ball])
    theta = [rng.standard_normal((6, n)), rng.standard_normal(6), np.array(0.3)]
    outputs = [x, t, *cone.dual_variables, ball.dual_variables[0], problem.objective]
    return Case(problem, [A, b, r], outputs, theta)


def exponential(rng):
    n = 4
    c, u = cp.Parameter(n, name="c"), cp.Parameter(n, pos=True, name="u")
    x, z = cp.Variable(n, name="x"), cp.Variable(n, name="z")
    cone, budget = cp.ExpCone(x, u, z), cp.sum(x) == 1
    problem = cp.Problem(cp.Minimize(cp.sum(z) + cp.sum(cp.logistic(c + x)) - 0.1 * cp.sum(cp.entr(z))), [cone, budget])
    theta = [rng.standard_normal(n), rng.uniform(0.5, 1.5, n)]
    return Case(problem, [c, u], [x, z, *cone.dual_variables, budget.dual_variables[0], problem.objective], theta)


def power(rng):
    a, b = cp.Parameter(3, pos=True, name="a"), cp.Parameter(3, name="b")
    x, y, z = (cp.Variable(3, name=name) for name in "xyz")
    cone, budget = cp.PowCone3D(x, y, z, np.array([0.3, 0.5, 0.8])), cp.multiply(a, x) + 2 * y <= 3
    problem = cp.Problem(cp.Minimize(-cp.sum(z) + 0.2 * cp.sum(cp.power(cp.abs(x - b), 2.5))), [cone, budget])
    theta = [rng.uniform(0.5, 2, 3), rng.standard_normal(3)]
    return Case(problem, [a, b], [x, y, z, *cone.dual_variables, budget.dual_variables[0], problem.objective], theta)


def psd(rng):
    n = 4
    C, B = cp.Parameter((n, n), symmetric=True, name="C"), cp.Parameter((n, n), symmetric=True, name="B")
    X = cp.Variable((n, n), PSD=True, name="X")
    floor, trace = X >> B, cp.trace(X) == 2
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X) + 0.2 * cp.sum_squares(X)), [floor, trace])
    theta = [symmetric(rng.standard_normal((n, n))), 0.2 * symmetric(rng.standard_normal((n, n)))]
    return Case(problem, [C, B], [X, floor.dual_variables[0], trace.dual_variables[0], problem.objective], theta)


def lmi(rng):
    n, k = 3, 5
    F0, c = cp.Parameter((k, k), symmetric=True, name="F0"), cp.Parameter(n, name="c")
    x = cp.Variable(n, name="x")
    F = [symmetric(rng.standard_normal((k, k))) for _ in range(n)]
    inequality = F0 + sum(x[i] * F[i] for i in range(n)) >> 0
    problem = cp.Problem(cp.Minimize(c @ x + 0.05 * cp.sum_squares(x)), [inequality])
    theta = [symmetric(rng.standard_normal((k, k))) + 3 * np.eye(k), rng.standard_normal(n)]
    return Case(problem, [F0, c], [x, inequality.dual_variables[0], problem.objective], theta)


def geometric(rng):
    a, b = cp.Parameter(3, pos=True, name="a"), cp.Parameter(pos=True, name="b")
    x, y = cp.Variable(3, pos=True, name="x"), cp.Variable(pos=True, name="y")
    volume = cp.prod(x) >= b
    problem = cp.Problem(cp.Minimize(cp.sum(cp.multiply(a, x)) + 1 / y), [volume, y * x[0] + x[1] * x[2] <= 3, y <= 5 * b])
    theta = [rng.uniform(0.5, 2, 3), np.array(0.8)]
    return Case(problem, [a, b], [x, y, problem.objective, x[0] * y], theta)


def attributes(rng):
    """Variables and parameters of every attribute, N-d ones, and a maximum."""
    c, S = cp.Parameter((2, 3), name="c"), cp.Parameter((3, 3), symmetric=True, name="S")
    D, w = cp.Parameter((3, 3), diag=True, name="D"), cp.Parameter((2, 2, 2), name="w")
    X, Y, Z = (
        cp.Variable((3, 3), symmetric=True, name="X"),
        cp.Variable((3, 3), diag=True, name="Y"),
        cp.Variable((3, 3), PSD=True, name="Z"),
    )
    T = cp.Variable((2, 2, 2), name="T")
    N = cp.Variable((2, 3), nonneg=True, name="N")
    V = cp.Variable((2, 3), sparsity=[(0, 1, 1), (1, 0, 2)], name="V")
    B = cp.Variable((2,), bounds=[-0.3, 0.4], name="B")
    s, M = cp.Variable(name="s", nonpos=True), cp.Variable((2, 2), NSD=True, name="M")
    apart = [
        cp.sum_squares(X - S),
        cp.sum_squares(Y - D),
        cp.sum_squares(Z + S),
        cp.sum_squares(T - w),
        cp.sum_squares(N - c),
        cp.sum_squares(V - c),
        cp.sum_squares(B - c[:, 0]),
        cp.square(s - c[0, 0]),
        cp.sum_squares(M - S[:2, :2]),
    ]
    tied = [cp.sum(X) + cp.trace(Y) + cp.sum(Z) + cp.sum(T) + cp.sum(N) + cp.sum(V) + cp.sum(B) + s + cp.sum(M) == 1]
    problem = cp.Problem(cp.Maximize(5 - sum(apart)), tied)
    # S indefinite, away from rank changes; c with both signs, away from the bounds.
    theta = [
        np.array([[-0.8, 0.9, -0.5], [0.9, 0.7, -1.1]]),
        np.diag([1.5, -1.0, 0.6]) + 0.3 * symmetric(rng.standard_normal((3, 3))),
        np.diag(rng.standard_normal(3)),
        rng.standard_normal((2, 2, 2)),
    ]
    outputs = [X, Y, Z, T, N, V, B, s, M, tied[0].dual_variables[0], problem.objective, X[0] + N[1], cp.trace(Z)]
    return Case(problem, [c, S, D, w], outputs, theta)


FAMILIES = {f.__name__: f for f in (qp, lp, least_squares, socp, exponential, power, psd, lmi, geometric, attributes)}


@cache
def case(name) -> Case:
    """The case of a family, always the same."""
    return FAMILIES[name](np.random.default_rng(7))


@cache
def compiled(name, **settings: Any):
    """Its compiled problem."""
    c = case(name)
    with warnings.catch_warnings():  # what CVXPY says about its own use of sparse and N-d leaves
        warnings.filterwarnings("ignore", "Reading from a sparse|The problem has an expression with dimension")
        return lc.compile(c.problem, parameters=c.parameters, variables=c.outputs, **settings)


def solve(name):
    """The evaluation at the family's own parameter values."""
    return compiled(name).evaluate(case(name).theta)
