"""The lanes LDL' against dense algebra, and its promises: neighbours, threads, widths and copies change no bit."""

import copy
import pickle
import threading

import numpy as np
import pytest

from layercompiler.errors import BuildError, LayerCompilerError, ShapeError
from layercompiler.kernels import LDL, available, instruction_set

pytestmark = pytest.mark.skipif(not available(), reason="the kernels are not built")


def quasi_definite(rng, n, m, density, batch):
    """Pattern and values of [[P, A'], [A, -N]] with diagonal P, N."""
    a = rng.random((m, n)) < density
    r, c = np.nonzero(a)
    rows, cols = np.r_[np.arange(n + m), c], np.r_[np.arange(n + m), n + r]
    signs = np.r_[np.ones(n), -np.ones(m)].astype(np.int8)
    values = np.concatenate([rng.uniform(0.1, 2, (batch, n)), -rng.uniform(0.1, 2, (batch, m)), rng.normal(size=(batch, r.size))], axis=1)
    return rows, cols, signs, values


def dense(n, rows, cols, values):
    k = np.zeros((len(values), n, n))
    for b in range(len(values)):
        np.add.at(k[b], (rows, cols), values[b])
    return k + np.swapaxes(np.triu(k, 1) if k.ndim == 2 else k * np.triu(np.ones((n, n)), 1), 1, 2)


def sets():
    names = []
    for name in ("scalar", "avx2", "avx512", "neon"):
        try:
            names.append(instruction_set(name))
        except LayerCompilerError:
            continue
    return names


@pytest.mark.parametrize("isa", sets() if available() else [])
@pytest.mark.parametrize(
    ("n", "m", "density"), [(1, 0, 1.0), (1, 1, 1.0), (5, 3, 0.5), (30, 60, 1.0), (40, 50, 0.1), (100, 150, 0.02), (7, 200, 0.3)]
)
@pytest.mark.parametrize("batch", [1, 3, 13])
def test_solves_to_rounding(isa, n, m, density, batch):
    rng = np.random.default_rng(n + m)
    rows, cols, signs, values = quasi_definite(rng, n, m, density, batch)
    ldl = LDL(n + m, rows, cols, signs, isa=isa)
    factor = ldl.factor(values)
    rhs = rng.normal(size=(batch, 3, n + m))
    x, residual = factor.solve(rhs)
    k = dense(n + m, rows, cols, values)
    assert (factor.pivots > 0).all()
    assert residual.shape == (batch, 3) and (residual < 1e-13).all()
    np.testing.assert_allclose(np.einsum("bij,bkj->bki", k, x), rhs, atol=1e-11)
    np.testing.assert_array_equal(factor.solve(rhs[:, 1])[0], x[:, 1])


def test_same_bits_alone_in_a_pack_and_on_threads():
    rng = np.random.default_rng(0)
    rows, cols, signs, values = quasi_definite(rng, 20, 33, 0.3, 31)
    ldl = LDL(53, rows, cols, signs)
    rhs = rng.normal(size=(31, 2, 53))
    factor = ldl.factor(values)
    x, residual = factor.solve(rhs)
    for threads in (2, 5):
        again, r = ldl.factor(values, threads=threads).solve(rhs, threads=threads)
        np.testing.assert_array_equal(again, x)
        np.testing.assert_array_equal(r, residual)
    for i in (0, 8, 30):
        one, r = ldl.factor(values[i : i + 1]).solve(rhs[i : i + 1])
        np.testing.assert_array_equal(one[0], x[i])
    np.testing.assert_array_equal(ldl.factor(values[10:14]).solve(rhs[10:14])[0], x[10:14])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e308])
def test_bad_instance_touches_no_other(bad):
    rng = np.random.default_rng(1)
    rows, cols, signs, values = quasi_definite(rng, 20, 33, 0.3, 16)
    ldl = LDL(53, rows, cols, signs)
    rhs = rng.normal(size=(16, 53))
    x, residual = ldl.factor(values).solve(rhs)
    spoiled = values.copy()
    spoiled[3] = bad
    f = ldl.factor(spoiled)
    y, r = f.solve(rhs)
    keep = np.arange(16) != 3
    np.testing.assert_array_equal(y[keep], x[keep])
    np.testing.assert_array_equal(r[keep], residual[keep])
    assert not r[3] < 1e-6
    if not np.isfinite(bad):
        assert np.isnan(f.pivots[3]) and np.isnan(r[3])


def test_one_factor_serves_every_right_hand_side():
    rng = np.random.default_rng(2)
    rows, cols, signs, values = quasi_definite(rng, 20, 33, 0.3, 1)
    ldl = LDL(53, rows, cols, signs)
    rhs = rng.normal(size=(21, 3, 53))
    shared, r = ldl.factor(values).solve(rhs)
    apart, q = ldl.factor(np.repeat(values, 21, 0)).solve(rhs)
    np.testing.assert_array_equal(shared, apart)
    np.testing.assert_array_equal(r, q)


def test_repeated_entries_are_summed():
    ldl = LDL(2, [0, 0, 0, 1], [0, 1, 1, 1], [1, -1])
    x, _ = ldl.factor(np.array([[2.0, 0.25, 0.75, -1.0]])).solve(np.array([[3.0, 0.0]]))
    np.testing.assert_allclose(x, [[1, 1]], atol=1e-14)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_badly_scaled_rows(scale):
    rng = np.random.default_rng(3)
    rows, cols, signs, values = quasi_definite(rng, 10, 12, 0.6, 8)
    s = np.ones(22)
    s[[2, 15]] = scale
    x, _ = LDL(22, rows, cols, signs).factor(values * s[rows] * s[cols]).solve(np.ones((8, 22)) * s)
    y, _ = LDL(22, rows, cols, signs).factor(values).solve(np.ones((8, 22)))
    np.testing.assert_allclose(x * s, y, rtol=1e-8, atol=1e-9)


def test_singular_but_consistent():
    """Rank-deficient equalities: [[I, A'], [A, 0]] with equal rows; regularisation and refinement find a solution."""
    a = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    r, c = np.nonzero(a)
    ldl = LDL(5, np.r_[0, 1, 2, c], np.r_[0, 1, 2, 3 + r], [1, 1, 1, -1, -1])
    x, residual = ldl.factor(np.r_[1, 1, 1, a[r, c]][None]).solve(np.array([[1.0, 0, 0, 2, 2]]), refine=10)
    assert residual[0] < 1e-12
    np.testing.assert_allclose(a @ x[0, :3], [2, 2], atol=1e-11)


def test_late_unknowns_wait_for_their_neighbors():
    """A vanishing diagonal that only its neighbors make definite: eliminated first it would lose them to rounding."""
    rng = np.random.default_rng(7)
    k = 6
    u = rng.normal(size=(5, k))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    rows, cols = np.r_[np.arange(k), np.arange(k)], np.r_[np.arange(k), np.full(k, k)]
    values = np.concatenate([np.full((5, k), -1e-6), u], axis=1)
    signs = np.r_[-np.ones(k), 1].astype(int)
    rhs = rng.normal(size=(5, k + 1))
    late = LDL(k + 1, rows, cols, signs, late=np.arange(k + 1) == k)
    x, residual = late.factor(values, eps=1e-9).solve(rhs)
    assert (residual < 1e-9).all()
    want = np.linalg.solve(dense(k + 1, rows, cols, values), rhs[..., None])[..., 0]
    np.testing.assert_allclose(x, want, rtol=1e-8, atol=1e-8 * np.abs(want).max())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(late)).factor(values, eps=1e-9).solve(rhs)[0], x)


def test_copies_and_threads():
    rng = np.random.default_rng(4)
    rows, cols, signs, values = quasi_definite(rng, 20, 33, 0.3, 9)
    ldl = LDL(53, rows, cols, signs)
    rhs = rng.normal(size=(9, 53))
    x = ldl.factor(values).solve(rhs)[0]
    for other in (pickle.loads(pickle.dumps(ldl)), copy.deepcopy(ldl)):
        np.testing.assert_array_equal(other.factor(values).solve(rhs)[0], x)
    factor, wrong = ldl.factor(values), []

    def work():
        for _ in range(20):
            if not (np.array_equal(factor.solve(rhs, threads=2)[0], x) and np.array_equal(ldl.factor(values, threads=2).solve(rhs)[0], x)):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


def test_empty_batch_and_shapes():
    ldl = LDL(2, [0], [1], [1, -1])
    x, r = ldl.factor(np.zeros((0, 1))).solve(np.zeros((0, 2)))
    assert x.shape == (0, 2) and r.shape == (0,)
    x, r = ldl.factor(np.ones((3, 1))).solve(np.zeros((3, 0, 2)))
    assert x.shape == (3, 0, 2)
    with pytest.raises(ShapeError):
        ldl.factor(np.zeros((3, 2)))
    with pytest.raises(ShapeError):
        ldl.factor(np.ones((3, 1))).solve(np.zeros((2, 2)))


def test_malformed_patterns_are_refused():
    rng = np.random.default_rng(5)
    for _ in range(2000):
        n = int(rng.integers(1, 8))
        count = int(rng.integers(1, 12))
        rows, cols = np.sort(rng.integers(0, n, (2, count)), axis=0)
        signs = rng.choice([-1, 1], n)
        kind = rng.integers(6)
        if kind == 0:
            cols[rng.integers(count)] = n + rng.integers(0, 2**40)
        elif kind == 1:
            rows[rng.integers(count)] = -rng.integers(1, 2**40)
        elif kind == 2:
            signs[rng.integers(n)] = rng.choice([0, 2, -7])
        elif kind == 3:
            rows = rows[:-1]
        elif kind == 4:
            signs = np.r_[signs, 1]
        elif kind == 5:
            k = rng.integers(count)
            rows[k], cols[k] = n - 1, 0
            if n == 1:
                continue
        with pytest.raises((BuildError, OverflowError)):
            LDL(n, rows, cols, signs)
    with pytest.raises(BuildError):
        LDL(0, [], [], [])
    with pytest.raises(LayerCompilerError):
        LDL(2, [0.5], [1], [1, 1])


@pytest.mark.parametrize("alike", [4, 16, 37])
def test_subtrees_of_one_shape(alike):
    """Small trees of one pattern that meet in a dense block, as a portfolio's assets do; their columns are eliminated side by side."""
    rng, root = np.random.default_rng(alike), 5
    n = root + 3 * alike
    pairs = [(i, j) for i in range(root) for j in range(i, root)]
    for k in range(alike):
        z, x, w = root + 3 * k + np.arange(3)
        pairs += [(z, z), (x, x), (w, w), (z, x), (x, w), (0, z), (1, z), *((r, w) for r in range(root))]
    rows, columns = np.array(pairs).T
    values = rng.uniform(0.1, 1.0, (11, len(pairs))) + 2.0 * n * (rows == columns)
    ldl = LDL(n, rows, columns, np.ones(n))
    rhs = rng.normal(size=(11, n))
    x, _ = ldl.factor(values, eps=0.0).solve(rhs, refine=0)
    for i in range(11):
        K = np.zeros((n, n))
        K[rows, columns] = K[columns, rows] = values[i]
        np.testing.assert_allclose(K @ x[i], rhs[i], atol=1e-11)
        np.testing.assert_array_equal(ldl.factor(values[i : i + 1], eps=0.0).solve(rhs[i : i + 1], refine=0)[0][0], x[i])
