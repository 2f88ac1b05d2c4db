"""The benchmark problems: all DPP; generic instances are feasible, bounded, and have a unique, strictly complementary solution.

Each builder returns a `Case`; `sample(batch, rng)` draws parameter values with a leading batch axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cvxpy as cp
import numpy as np


@dataclass
class Case:
    name: str
    problem: cp.Problem
    parameters: list
    variables: list
    sample: Callable
    size: str


def qp(n=50, inequalities=25, equalities=10):
    """Dense quadratic program in the form of OptNet; all six data are parameters."""
    root, q = cp.Parameter((n, n)), cp.Parameter(n)
    G, h = cp.Parameter((inequalities, n)), cp.Parameter(inequalities)
    A, b = cp.Parameter((equalities, n)), cp.Parameter(equalities)
    x = cp.Variable(n)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(root @ x) + q @ x), [G @ x <= h, A @ x == b])

    def sample(batch, rng):
        scale = np.sqrt(n)
        roots = rng.standard_normal((batch, n, n)) / scale + np.eye(n)
        qs = rng.standard_normal((batch, n))
        Gs = rng.standard_normal((batch, inequalities, n)) / scale
        As = rng.standard_normal((batch, equalities, n)) / scale
        inside = rng.standard_normal((batch, n, 1))
        hs = (Gs @ inside)[..., 0] + rng.uniform(0.1, 1, (batch, inequalities))
        return [roots, qs, Gs, hs, As, (As @ inside)[..., 0]]

    return Case("qp", problem, [root, q, G, h, A, b], [x], sample, f"n={n}, {inequalities} inequalities, {equalities} equalities")


def lp(n=50, m=25):
    """Linear program in standard form with a nondegenerate vertex; c, A, b are parameters."""
    x, c, A, b = cp.Variable(n), cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m)
    problem = cp.Problem(cp.Minimize(c @ x), [A @ x == b, x >= 0])

    def sample(batch, rng):
        As = rng.standard_normal((batch, m, n)) / np.sqrt(n)
        vertex, slack = np.zeros((batch, n)), np.zeros((batch, n))
        for i in range(batch):
            order = rng.permutation(n)
            vertex[i, order[:m]] = rng.uniform(0.5, 1.5, m)
            slack[i, order[m:]] = rng.uniform(0.5, 1.5, n - m)
        y = rng.standard_normal((batch, m))
        return [np.einsum("bij,bi->bj", As, y) + slack, As, np.einsum("bij,bj->bi", As, vertex)]

    return Case("lp", problem, [c, A, b], [x], sample, f"n={n}, m={m}")


def _factor_model(n, k):
    return cp.Variable(n), cp.Parameter(n), cp.Parameter((k, n)), cp.Parameter(n)


def _draw_factor_model(n, k, batch, rng):
    return [0.3 * rng.standard_normal((batch, n)), rng.standard_normal((batch, k, n)) / np.sqrt(k), rng.uniform(0.5, 1.0, (batch, n))]


def portfolio_qp(n=100, k=10):
    """Long-only Markowitz portfolio with a factor model of risk."""
    w, mu, F, d = _factor_model(n, k)
    risk = cp.sum_squares(F @ w) + cp.sum_squares(cp.multiply(d, w))
    problem = cp.Problem(cp.Maximize(mu @ w - risk), [cp.sum(w) == 1, w >= 0])
    return Case("portfolio_qp", problem, [mu, F, d], [w], lambda B, rng: _draw_factor_model(n, k, B, rng), f"n={n}, {k} factors")


def portfolio_socp(n=100, k=10):
    """Largest return under a cap on the risk."""
    w, mu, F, d = _factor_model(n, k)
    cap = cp.Parameter(nonneg=True)
    risk = cp.norm(cp.hstack([F @ w, cp.multiply(d, w)]))
    problem = cp.Problem(cp.Maximize(mu @ w), [cp.sum(w) == 1, w >= 0, risk <= cap])

    def sample(batch, rng):
        return [*_draw_factor_model(n, k, batch, rng), np.full(batch, 0.35)]

    return Case("portfolio_socp", problem, [mu, F, d, cap], [w], sample, f"n={n}, {k} factors")


def logistic(features=20, rows=100):
    """Regularised logistic regression (exponential cones)."""
    beta, offset = cp.Variable(features), cp.Variable()
    X, weight = cp.Parameter((rows, features)), cp.Parameter(nonneg=True)
    labels = np.sign(np.random.default_rng(7).standard_normal(rows))
    loss = cp.sum(cp.logistic(-cp.multiply(labels, X @ beta + offset))) / rows
    problem = cp.Problem(cp.Minimize(loss + weight * cp.sum_squares(beta)))

    def sample(batch, rng):
        direction = rng.standard_normal((batch, 1, features)) / np.sqrt(features)
        return [rng.standard_normal((batch, rows, features)) + 0.5 * labels[None, :, None] * direction, np.full(batch, 0.05)]

    return Case("logistic", problem, [X, weight], [beta, offset], sample, f"{features} features, {rows} rows")


def sdp(n=10, equalities=5):
    """Semidefinite program in standard form."""
    X, C, b = cp.Variable((n, n), symmetric=True), cp.Parameter((n, n)), cp.Parameter(equalities)
    As = [cp.Parameter((n, n)) for _ in range(equalities)]
    constraints = [X >> 0] + [cp.trace(As[i] @ X) == b[i] for i in range(equalities)]
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X)), constraints)

    def sample(batch, rng):
        def symmetric():
            M = rng.standard_normal((batch, n, n))
            return (M + M.swapaxes(-1, -2)) / 2 / np.sqrt(n)

        values = [symmetric() for _ in range(equalities)]
        values[0] = np.eye(n) + 0.1 * values[0]
        L = rng.standard_normal((batch, n, n)) / np.sqrt(n)
        inside = L @ L.swapaxes(-1, -2)
        return [symmetric(), *values, np.stack([np.einsum("bij,bij->b", a, inside) for a in values], -1)]

    return Case("sdp" if n == 10 else f"sdp_{n}", problem, [C, *As, b], [X], sample, f"order {n}, {equalities} equalities")


def sdp_30():
    """The semidefinite program at order 30."""
    return sdp(30)


def sparsemax(n=100):
    """Projection onto the probability simplex."""
    x, z = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - z)), [cp.sum(x) == 1, x >= 0])
    return Case("sparsemax", problem, [z], [x], lambda B, rng: [0.5 * rng.standard_normal((B, n))], f"n={n}")


def mpc(horizon=20, states=4, inputs=2):
    """Linear model-predictive control with bounded inputs; the dynamics and the initial state are parameters."""
    A, B, start = cp.Parameter((states, states)), cp.Parameter((states, inputs)), cp.Parameter(states)
    X, U = cp.Variable((states, horizon + 1)), cp.Variable((inputs, horizon))
    constraints = [X[:, 0] == start, X[:, 1:] == A @ X[:, :-1] + B @ U, cp.abs(U) <= 0.4]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X) + 0.3 * cp.sum_squares(U)), constraints)

    def sample(batch, rng):
        dynamics = np.eye(states) + 0.1 * rng.standard_normal((batch, states, states))
        return [dynamics, 0.5 * rng.standard_normal((batch, states, inputs)), rng.uniform(-1, 1, (batch, states))]

    return Case("mpc", problem, [A, B, start], [U], sample, f"horizon {horizon}, {states} states, {inputs} inputs")


def robust_lp(n=10, cones=10):
    """Linear program with ellipsoidal uncertainty in every row (second-order cones)."""
    roots = 0.2 * np.random.default_rng(8).standard_normal((cones - 1, n, n))
    centres, b, c = cp.Parameter((cones - 1, n)), cp.Parameter(cones - 1), cp.Parameter(n)
    x = cp.Variable(n)
    constraints = [centres[i] @ x + cp.norm2(roots[i] @ x) <= b[i] for i in range(cones - 1)] + [cp.norm2(x) <= 3]
    problem = cp.Problem(cp.Minimize(c @ x), constraints)

    def sample(batch, rng):
        return [rng.standard_normal((batch, cones - 1, n)), rng.uniform(0.5, 1.5, (batch, cones - 1)), rng.standard_normal((batch, n))]

    return Case("robust_lp", problem, [centres, b, c], [x], sample, f"n={n}, {cones} second-order cones of order {n + 1}")


def sparse_qp(n=200, m=100):
    """Sparse quadratic program: fixed banded matrix, fixed sparse rows; the vectors are parameters."""
    rng = np.random.default_rng(9)
    band = 2.5 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    rows = np.zeros((m, n))
    for i in range(m):
        rows[i, rng.choice(n, 3, replace=False)] = rng.standard_normal(3)
    q, b, x = cp.Parameter(n), cp.Parameter(m), cp.Variable(n)
    problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, cp.psd_wrap(band)) + q @ x), [rows @ x <= b, cp.abs(x) <= 1])
    return Case(
        "sparse_qp",
        problem,
        [q, b],
        [x],
        lambda B, r: [r.standard_normal((B, n)), r.uniform(0.05, 0.5, (B, m))],
        f"n={n}, {m} sparse rows, bounds",
    )


BUILDERS = {f.__name__: f for f in (qp, lp, portfolio_qp, portfolio_socp, logistic, sdp, sparsemax, mpc, robust_lp, sparse_qp, sdp_30)}
SEVEN = ("qp", "lp", "portfolio_qp", "portfolio_socp", "logistic", "sdp", "sparsemax")
