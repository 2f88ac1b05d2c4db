"""Discrete problems of the benchmarks: nine MAP problems in CVXPY, and the shortest-path data of PyEPO's notebook 03."""

import itertools

import cvxpy as cp
import numpy as np

from tests.discrete.problems import assignment, knapsack, shortest_path, subset, tour_mtz


def tour_dfj(n):
    """Undirected edges, a row for every subset of cities."""
    edges = list(itertools.combinations(range(n), 2))
    degree = np.array([[1.0 if v in e else 0.0 for e in edges] for v in range(n)])
    rows, sizes = [], []
    for r in range(3, n // 2 + 1):
        for chosen in itertools.combinations(range(n), r):
            if 2 * r < n or 0 in chosen:
                rows.append([1.0 if set(e) <= set(chosen) else 0.0 for e in edges])
                sizes.append(r - 1.0)
    c, x = cp.Parameter(len(edges), name="c"), cp.Variable(len(edges), boolean=True, name="x")
    return cp.Problem(cp.Minimize(c @ x), [degree @ x == 2, np.array(rows) @ x <= np.array(sizes)]), c, x


def _uniform(low, high):
    return lambda rng, shape: rng.uniform(low, high, shape)


PROBLEMS = {
    "path 5x5 (LP)": (lambda: shortest_path(5, boolean=False), _uniform(0.5, 1.5)),
    "path 12x12 (LP)": (lambda: shortest_path(12, boolean=False), _uniform(0.5, 1.5)),
    "path 5x5": (lambda: shortest_path(5), _uniform(0.5, 1.5)),
    "path 12x12": (lambda: shortest_path(12), _uniform(0.5, 1.5)),
    "k-subset 100/10": (lambda: subset(100, 10), lambda rng, shape: rng.standard_normal(shape)),
    "assignment 10": (lambda: assignment(10), _uniform(0.0, 1.0)),
    "assignment 20": (lambda: assignment(20), _uniform(0.0, 1.0)),
    "knapsack 32, 2 rows": (lambda: knapsack(32, 2, 20.0), lambda rng, shape: np.ceil(50 * rng.uniform(0.3, 2.0, shape)) / 10),
    "tour 10 (DFJ)": (lambda: tour_dfj(10), _uniform(0.5, 3.0)),
    "tour 10 (MTZ)": (lambda: tour_mtz(10), _uniform(0.5, 3.0)),
}


def costs(name, size, instances=32, samples=10):
    """Costs of `instances` random problems with `samples` perturbed copies each, std 0.1 of the costs' own."""
    rng = np.random.RandomState(1)
    base = PROBLEMS[name][1](rng, (instances, size))
    return np.repeat(base, samples, 0) + 0.1 * base.std() * rng.standard_normal((instances * samples, size))


def path_data(count=2000, features=5, grid=(5, 5), degree=4, noise=0.5, seed=42):
    """Features and arc costs by the recipe of PyEPO's shortest-path generator."""
    rng = np.random.RandomState(seed)
    arcs = grid[0] * (grid[1] - 1) + (grid[0] - 1) * grid[1]
    B = rng.binomial(1, 0.5, (arcs, features))
    x = rng.normal(0, 1, (count, features))
    c = (((x @ B.T) / np.sqrt(features) + 3) ** degree + 1) / 3.5**degree
    return x.astype(np.float32), (c * rng.uniform(1 - noise, 1 + noise, c.shape)).astype(np.float32)


def knapsack_data(count=2000, features=5, items=32, rows=2, degree=4, noise=0.5, seed=42):
    """Weights, features and values of items by the recipe of PyEPO's knapsack generator."""
    rng = np.random.RandomState(seed)
    weights = rng.choice(range(300, 800), size=(rows, items)) / 100
    B = rng.binomial(1, 0.5, (items, features))
    x = rng.normal(0, 1, (count, features))
    c = 5 * ((x @ B.T / np.sqrt(features) + 3) ** degree + 1) / 3.5**degree
    return weights, x.astype(np.float32), np.ceil(c * rng.uniform(1 - noise, 1 + noise, c.shape)).astype(np.float32)


def tour_data(count=2000, features=5, cities=10, degree=4, noise=0.5, seed=42):
    """Features and edge costs by the recipe of PyEPO's generator of tours."""
    rng = np.random.RandomState(seed)
    places = np.concatenate([rng.uniform(-2, 2, (cities // 2, 2)), rng.normal(0, 1, (cities - cities // 2, 2))])
    i, j = np.triu_indices(cities, 1)
    B = rng.binomial(1, 0.5, (len(i), features)) * rng.uniform(-2, 2, (len(i), features))
    x = rng.normal(0, 1, (count, features))
    c = (x @ B.T / np.sqrt(features) + 3) ** degree / 3 ** (degree - 1)
    c = np.linalg.norm(places[i] - places[j], axis=1) + c * rng.uniform(1 - noise, 1 + noise, c.shape)
    return x.astype(np.float32), np.around(c, 4).astype(np.float32)
