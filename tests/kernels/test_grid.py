"""The compiled shortest paths on grids against scipy's Dijkstra, and against the numpy form of the oracle."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.csgraph import dijkstra

from layercompiler import kernels
from layercompiler.errors import OptionError, ShapeError
from layercompiler.solvers.oracles import GridPath, grid_path

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")


def distance(weights, neighbors):
    """Least total weight by scipy: the weight of a step is that of the cell it enters."""
    r, c = weights.shape
    tails, heads = [], []
    for i, j in np.ndindex(r, c):
        for a, b in itertools.product((-1, 0, 1), repeat=2):
            if 0 < abs(a) + abs(b) <= (2 if neighbors == 8 else 1) and 0 <= i + a < r and 0 <= j + b < c:
                tails.append(i * c + j), heads.append((i + a) * c + j + b)
    graph = sp.csr_array((weights.ravel()[heads], (tails, heads)), shape=(r * c, r * c))
    return weights[0, 0] + dijkstra(graph, indices=0)[-1] if r * c > 1 else weights[0, 0]


def assert_paths(paths, neighbors):
    """Each is zero or one, and its cells hang together from corner to corner."""
    for path in paths:
        cells = set(zip(*np.nonzero(path), strict=True))
        assert set(np.unique(path)) <= {0.0, 1.0}
        seen, queue = {(0, 0)}, [(0, 0)]
        assert (0, 0) in cells and (path.shape[0] - 1, path.shape[1] - 1) in cells
        while queue:
            i, j = queue.pop()
            for a, b in itertools.product((-1, 0, 1), repeat=2):
                v = (i + a, j + b)
                if (neighbors == 8 or a == 0 or b == 0) and v in cells and v not in seen:
                    seen.add(v), queue.append(v)
        assert seen == cells


def by_numpy(oracle, values, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(grid_path.kernels, "available", lambda: False)
        return oracle(values)


@pytest.mark.parametrize("neighbors", [4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 1), (2, 2), (7, 5), (12, 12), (30, 17)])
def test_paths_are_shortest_and_those_of_the_numpy_form(shape, neighbors, monkeypatch):
    oracle, rng = GridPath(*shape, neighbors), np.random.default_rng(0)
    for values in (rng.uniform(0.1, 9, (19, *shape)), rng.integers(1, 4, (19, *shape)).astype(float), rng.exponential(1, (3, *shape)) ** 4):
        found = oracle(values)
        assert_paths(found, neighbors)
        weights = np.maximum(values, oracle.floor)
        best = [distance(w, neighbors) for w in weights]
        np.testing.assert_allclose((found * weights).sum((1, 2)), best, rtol=1e-13)
        np.testing.assert_array_equal(found, by_numpy(oracle, values, monkeypatch))


def test_paths_that_turn_at_every_row():
    r, c = 21, 20
    weights = np.full((r, c), 1000.0)
    weights[::2] = 1.0
    weights[1::4, -1] = weights[3::4, 0] = 1.0
    (found,) = GridPath(r, c)(weights[None])
    np.testing.assert_array_equal(found, np.where(weights == 1.0, 1.0, 0.0) * found)
    assert (found * weights).sum() == distance(weights, 8)


@pytest.mark.parametrize("neighbors", [4, 8])
def test_walks_end_where_weights_vanish_beside_the_distances(neighbors, monkeypatch):
    r, c = 9, 9
    weights = np.full((40, r, c), 1e-6)
    rng = np.random.default_rng(0)
    weights[rng.uniform(size=weights.shape) < 0.25] = 1e12
    weights[:, 0, 0] = 1e13
    weights[0, 4, :] = 1e12
    oracle = GridPath(r, c, neighbors)
    found = oracle(weights)
    assert_paths(found, neighbors)
    np.testing.assert_array_equal(found, by_numpy(oracle, weights, monkeypatch))
    np.testing.assert_allclose((found * weights).sum((1, 2)), [distance(w, neighbors) for w in weights], rtol=1e-13)


def test_weights_as_large_as_numbers_get(monkeypatch):
    weights = np.full((3, 5, 5), 1e300)
    weights[1], weights[2, 2:] = np.finfo(float).max, 1.0
    oracle = GridPath(5, 5, 4)
    assert_paths(oracle(weights), 4)
    np.testing.assert_array_equal(oracle(weights), by_numpy(oracle, weights, monkeypatch))


def test_answers_do_not_depend_on_instruction_set_threads_or_company():
    weights = np.random.default_rng(1).integers(1, 5, (37, 11, 13)).astype(float)
    first = kernels.grid_paths(weights, 8, 1e-6, 1e290)
    for isa in {"scalar", kernels.instruction_set()}:
        for threads in (1, 3):
            np.testing.assert_array_equal(kernels.grid_paths(weights, 8, 1e-6, 1e290, isa=isa, threads=threads), first)
    for k in (0, 17, 36):
        np.testing.assert_array_equal(kernels.grid_paths(weights[k : k + 1], 8, 1e-6, 1e290)[0], first[k])
    with pytest.raises(OptionError):
        kernels.grid_paths(weights, 8, 1e-6, 1e290, isa="abacus")


def test_large_grids_go_on_one_by_one():
    weights = np.random.default_rng(2).uniform(1, 2, (2, 150, 140))
    found = GridPath(150, 140)(weights)
    np.testing.assert_allclose((found * weights).sum((1, 2)), [distance(w, 8) for w in weights], rtol=1e-12)


def test_malformed_weights_are_refused():
    for wrong in (np.zeros((2, 3)), np.zeros((2, 0, 3)), np.full((1, 2, 2), np.nan)):
        with pytest.raises(ShapeError):
            kernels.grid_paths(wrong, 8, 1e-6, 1e290)
    assert kernels.grid_paths(np.zeros((0, 3, 3)), 8, 1e-6, 1e290).shape == (0, 3, 3)
