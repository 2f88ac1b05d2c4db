"""Named oracles: feasible, and as good as the best of all solutions."""

import itertools

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse.csgraph import minimum_spanning_tree

import layercompiler as lc
from layercompiler import errors
from layercompiler.solvers.oracles import Assignment, DagPath, GridPath, Knapsack, Ranking, SpanningTree, TopK, Tour
from tests.discrete.problems import tour_mtz


def _subsets():
    return np.array([z for z in itertools.product([0.0, 1.0], repeat=7) if sum(z) == 3])


def _permutations(n):
    return np.array([np.eye(n)[list(p)].ravel() for p in itertools.permutations(range(n))])


def _tours(n):
    found = []
    for p in itertools.permutations(range(1, n)):
        z = np.zeros((n, n))
        z[[0, *p], [*p, 0]] = 1
        found.append(z.ravel())
    return np.array(found)


def _trees(edges, nodes):
    found = []
    for chosen in itertools.combinations(range(len(edges)), nodes - 1):
        parts = {v: v for v in range(nodes)}

        def root(v, parts=parts):
            while parts[v] != v:
                v = parts[v]
            return v

        for e in chosen:
            u, v = edges[e]
            parts[root(u)] = root(v)
        if len({root(v) for v in range(nodes)}) == 1:
            found.append(np.isin(np.arange(len(edges)), chosen).astype(float))
    return np.array(found)


def _grid_paths(rows, columns, neighbors):
    """All simple paths of a grid from corner to corner."""
    found = []

    def extend(path):
        i, j = path[-1]
        if (i, j) == (rows - 1, columns - 1):
            z = np.zeros((rows, columns))
            z[tuple(np.array(path).T)] = 1
            found.append(z.ravel())
            return
        for a, b in itertools.product((-1, 0, 1), repeat=2):
            if (abs(a) + abs(b) == 1 or neighbors == 8) and 0 <= i + a < rows and 0 <= j + b < columns and (i + a, j + b) not in path:
                extend([*path, (i + a, j + b)])

    extend([(0, 0)])
    return np.array(found)


def _dag_paths(arcs, source, target):
    found = []

    def extend(node, chosen):
        if node == target:
            found.append(np.isin(np.arange(len(arcs)), chosen).astype(float))
        for e, (tail, head) in enumerate(arcs):
            if tail == node:
                extend(head, [*chosen, e])

    extend(source, [])
    return np.array(found)


DAG = DagPath(((3, 0), (0, 1), (0, 2), (1, 2), (3, 2), (2, 4), (1, 4), (5, 1), (4, 6)), 3, 4)
CASES = {
    "top-k": (TopK(7, 3), _subsets(), "normal"),
    "ranking": (Ranking(5), np.array([np.array(p) + 1.0 for p in itertools.permutations(range(5))]), "normal"),
    "assignment": (Assignment(4), _permutations(4), "normal"),
    "dag": (DAG, _dag_paths(DAG.arcs, 3, 4), "normal"),
    "dag grid": (DagPath.grid(3, 4), _dag_paths(DagPath.grid(3, 4).arcs, 0, 11), "normal"),
    "grid 8": (GridPath(3, 4), _grid_paths(3, 4, 8), "positive"),
    "grid 4": (GridPath(4, 3, neighbors=4), _grid_paths(4, 3, 4), "positive"),
    "grid 1x5": (GridPath(1, 5), _grid_paths(1, 5, 8), "positive"),
    "tree": (SpanningTree.complete(5), _trees(SpanningTree.complete(5).edges, 5), "normal"),
    "tree sparse": (SpanningTree(((0, 1), (1, 2), (2, 0), (2, 3))), _trees(((0, 1), (1, 2), (2, 0), (2, 3)), 4), "normal"),
    "knapsack": (
        Knapsack((3, 5, 1, 4, 2, 9), 8),
        np.array([z for z in itertools.product([0.0, 1.0], repeat=6) if np.dot(z, (3, 5, 1, 4, 2, 9)) <= 8]),
        "normal",
    ),
    "tour": (Tour(6), _tours(6), "normal"),
    "tour of two": (Tour(2), _tours(2), "normal"),
}


@pytest.mark.parametrize("name", CASES)
def test_solutions_are_feasible_and_the_best_of_all(name):
    oracle, feasible, kind = CASES[name]
    rng = np.random.default_rng(0)
    values = rng.standard_normal((60, feasible.shape[1]))
    values = np.abs(values) if kind == "positive" else values
    z = oracle.solve(values)
    assert ((z[:, None] == feasible).all(-1)).any(1).all()
    best = (values @ feasible.T).max(1) if oracle.sense == "max" else (values @ feasible.T).min(1)
    np.testing.assert_allclose((z * values).sum(1), best, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_equalities_hold_for_all_solutions(name):
    oracle, feasible, _ = CASES[name]
    E = oracle.equalities()
    if E is not None:
        np.testing.assert_allclose(feasible @ E.T, np.broadcast_to((feasible @ E.T)[:1], (len(feasible), len(E))), atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_batch_equals_singles_and_empty_batches_work(name):
    oracle = CASES[name][0]
    values = np.random.default_rng(1).uniform(0.1, 1, (5, *oracle.shape))
    np.testing.assert_array_equal(oracle(values), np.stack([oracle(v) for v in values]))
    assert oracle(np.zeros((0, *oracle.shape))).shape == (0, *oracle.shape)
    with pytest.raises(errors.ShapeError):
        oracle(np.zeros((2, 99)))


def test_larger_ones_agree_with_other_solvers():
    rng = np.random.default_rng(0)
    for n in (9, 12):
        problem, c, x = tour_mtz(n)
        costs = rng.uniform(0.1, 1, (2, n, n))
        program = lc.compile(problem, parameters=[c], variables=[x], estimator=lc.DBB()).solve(costs)
        np.testing.assert_allclose((Tour(n)(costs) * costs).sum((1, 2)), program.value, rtol=1e-9)
    tree, weights = SpanningTree.complete(30), rng.uniform(0.1, 1, (3, 435))
    for w, z in zip(weights, tree(weights), strict=True):
        matrix = np.zeros((30, 30))
        matrix[tuple(np.array(tree.edges).T)] = w
        assert z @ w == pytest.approx(minimum_spanning_tree(matrix).sum(), rel=1e-12)
    sizes = rng.integers(1, 30, 60)
    values = rng.uniform(0, 1, (3, 60))
    found = Knapsack(tuple(int(k) for k in sizes), 200)(values)
    assert (found @ sizes <= 200).all()
    for v, z in zip(values, found, strict=True):
        best = milp(-v, integrality=np.ones(60), bounds=Bounds(0, 1), constraints=LinearConstraint(sizes[None], -np.inf, 200))
        assert z @ v == pytest.approx(-best.fun, rel=1e-9)


def test_large_assignment_batches_use_threads_and_agree():
    values = np.random.default_rng(0).uniform(size=(40, 60, 60))
    np.testing.assert_array_equal(Assignment(60)(values)[3], Assignment(60)(values[3]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TopK(3, 4),
        lambda: TopK(0, 0),
        lambda: DagPath(((0, 1), (1, 0)), 0, 1),
        lambda: DagPath(((0, 1), (2, 3)), 0, 3),
        lambda: GridPath(3, 3, neighbors=6),
        lambda: SpanningTree(((0, 1), (2, 3))),
        lambda: Knapsack((1, 0), 3),
        lambda: Tour(13),
    ],
)
def test_impossible_oracles_are_refused(make):
    with pytest.raises(errors.OptionError):
        make()
