"""Discrete problems written in CVXPY, each with one cost parameter."""

import cvxpy as cp
import numpy as np


def shortest_path(k, boolean=True):
    from layercompiler.solvers.oracles import DagPath

    arcs = DagPath.grid(k, k).arcs
    A, b = np.zeros((k * k, len(arcs))), np.zeros(k * k)
    for e, (u, v) in enumerate(arcs):
        A[u, e], A[v, e] = -1, 1
    b[0], b[-1] = -1, 1
    c, x = cp.Parameter(len(arcs), name="c"), cp.Variable(len(arcs), boolean=boolean, name="x")
    return cp.Problem(cp.Minimize(c @ x), [A @ x == b] + ([] if boolean else [x >= 0])), c, x


def knapsack(n=12, dim=2, capacity=12.0, seed=0, weights=None):
    weights = np.random.RandomState(seed).choice(range(300, 800), size=(dim, n)) / 100 if weights is None else weights
    c, x = cp.Parameter(n, name="c"), cp.Variable(n, boolean=True, name="x")
    return cp.Problem(cp.Maximize(c @ x), [weights @ x <= capacity]), c, x


def subset(n=10, k=5):
    c, x = cp.Parameter(n, name="c"), cp.Variable(n, boolean=True, name="x")
    return cp.Problem(cp.Maximize(c @ x), [cp.sum(x) == k]), c, x


def assignment(n):
    c, x = cp.Parameter((n, n), name="c"), cp.Variable((n, n), boolean=True, name="x")
    return cp.Problem(cp.Minimize(cp.sum(cp.multiply(c, x))), [cp.sum(x, axis=0) == 1, cp.sum(x, axis=1) == 1]), c, x


def tour_mtz(n):
    c, x, u = cp.Parameter((n, n), name="c"), cp.Variable((n, n), boolean=True, name="x"), cp.Variable(n - 1, name="u")
    order = [u[i - 1] - u[j - 1] + (n - 1) * x[i, j] <= n - 2 for i in range(1, n) for j in range(1, n) if i != j]
    constraints = [cp.diag(x) == 0, cp.sum(x, axis=0) == 1, cp.sum(x, axis=1) == 1, u >= 1, u <= n - 1, *order]
    return cp.Problem(cp.Minimize(cp.sum(cp.multiply(c, x))), constraints), c, x


def general(seed=0):
    """Whole and continuous variables, bounds, inequalities, constants in the cost."""
    rng = np.random.default_rng(seed)
    x, y = cp.Variable(4, integer=True, name="x"), cp.Variable(3, name="y")
    c = cp.Parameter(4, name="c")
    A, B = rng.uniform(0, 1, (3, 4)), rng.uniform(0, 1, (3, 3))
    constraints = [A @ x + B @ y <= 7.3, x >= -2, x <= 5, y >= 0, y <= 2.5]
    return cp.Problem(cp.Maximize(c @ x + rng.uniform(0, 1, 3) @ y + 2.0), constraints), c, x


PROBLEMS = {
    "path": lambda: shortest_path(4),
    "path relaxed": lambda: shortest_path(4, boolean=False),
    "knapsack": knapsack,
    "subset": subset,
    "assignment": lambda: assignment(4),
    "tour": lambda: tour_mtz(5),
    "general": general,
}
