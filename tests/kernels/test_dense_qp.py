"""The dense QP kernels alone: optimality conditions, gradients beside exact active sets, bits, and what they refuse."""

import pickle

import numpy as np
import pytest

from layercompiler import kernels
from layercompiler.errors import BuildError, OptionError, ShapeError
from tests.qp import families

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")
SETS = [name for name in ("avx512", "avx2", "neon", "scalar")]


def instruction_sets():
    out = []
    for name in SETS:
        try:
            out.append(kernels.instruction_set(name))
        except OptionError:
            continue
    return out if kernels.available() else []


def solve(arrays, **settings):
    Q, p, G, h, A, b = arrays
    isa = settings.pop("isa", None)
    qp = kernels.DenseQP(p.shape[-1], b.shape[-1], h.shape[-1], isa=isa)
    return qp, qp.solve(Q, p, A, b, G, h, **settings)


def gradients(qp, found, w, count):
    return found.factors.gradients(w, np.zeros((count, qp.rows)), found.x, found.y, [True] * 6)


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("kind", ["std", "ill", "optnet", "dqp"])
@pytest.mark.parametrize("n", [1, 3, 10, 31])
def test_points_and_gradients_are_those_of_the_exact_active_set(form, kind, n):
    """Relative errors: rounding times the conditioning of the family; 1e-9 is what peers with an exact active set reach."""
    count = 5
    arrays = families.batch(kind, n, n, n // 4, count)
    qp, found = solve(arrays, form=form)
    assert not found.status.any() and (found.norm < 1e-12).all()
    w = np.random.default_rng(1).standard_normal((count, n))
    u, _, residual, got = gradients(qp, found, w, count)
    assert (residual < 1e-9).all() and np.isfinite(u).all()
    for i in range(count):
        one = [a[i] for a in arrays]
        x, expected = families.active_gradients(*one, found.x[i], found.y[i, n // 4 :], w[i])
        np.testing.assert_allclose(found.x[i], x, rtol=0, atol=1e-9 * (1 + np.abs(x).max()))
        for k, name in enumerate(("Q", "p", "A", "b", "G", "h")):
            reference = expected[families.NAMES.index(name)]
            np.testing.assert_allclose(got[k][i], reference, rtol=0, atol=1e-9 * (1e-3 + np.abs(reference).max(initial=0.0)))


@pytest.mark.parametrize("kind", ["std", "optnet"])
def test_an_instance_gives_the_same_bits_alone_in_any_batch_and_on_any_threads(kind):
    arrays = families.batch(kind, 13, 20, 3, 21)
    qp, whole = solve(arrays)
    w = np.random.default_rng(0).standard_normal((21, 13))
    expected = gradients(qp, whole, w, 21)
    _, threaded = solve(arrays, threads=3)
    for a, b in ((threaded.x, whole.x), (threaded.v, whole.v), (threaded.norm, whole.norm)):
        np.testing.assert_array_equal(a, b)
    for part in (slice(4, 5), slice(3, 10), slice(10, 21)):
        qp, found = solve([a[part] for a in arrays])
        np.testing.assert_array_equal(found.x, whole.x[part])
        np.testing.assert_array_equal(found.v, whole.v[part])
        for a, b in zip(gradients(qp, found, w[part], len(found.x))[3], expected[3], strict=True):
            np.testing.assert_array_equal(a, b[part])


def test_hard_instances_find_alone_what_they_find_in_a_batch():
    """Nearly active rows of many sizes, on which pivoting turns in circles: in a batch they wait for others of their kind."""
    n, m, p, count = 31, 30, 13, 32
    hard = 0
    for seed in (2, 3, 4, 7):
        rng = np.random.default_rng(seed)
        k = rng.standard_normal((count, n, n))
        Q, q = k @ k.transpose(0, 2, 1) / n + 1e-4 * np.eye(n), 100.0 * rng.standard_normal((count, n))
        G, A = rng.standard_normal((count, m, n)) * 10.0 ** rng.integers(-2, 3, (count, m, 1)), rng.standard_normal((count, p, n))
        x = rng.standard_normal((count, n))
        s = np.maximum(rng.standard_normal((count, m)), 0) * 10.0 ** rng.integers(-6, 1, (count, m))
        h, b = np.einsum("bij,bj->bi", G, x) + s * np.linalg.norm(G, axis=2), np.einsum("bij,bj->bi", A, x)
        _, whole = solve((Q, q, G, h, A, b), form="dual")
        for i in np.flatnonzero(whole.iterations > 40):
            _, one = solve([a[i : i + 1] for a in (Q, q, G, h, A, b)], form="dual")
            assert one.status[0] == whole.status[i]
            if whole.status[i] == 0:
                np.testing.assert_allclose(one.x[0], whole.x[i], rtol=0, atol=1e-7 * np.abs(whole.x[i]).max())
                hard += 1
    assert hard > 4


def test_matrices_that_the_batch_shares_give_the_same_bits_as_repeated_ones():
    Q, p, G, h, A, b = families.batch("std", 12, 15, 3, 11)
    one = [np.repeat(a[:1], 11, axis=0) for a in (Q, G, A)]
    h, b = np.einsum("bmn,bn->bm", one[1], p) + 1, np.einsum("bmn,bn->bm", one[2], p)
    _, repeated = solve((one[0], p, one[1], h, one[2], b))
    qp, shared = solve((Q[:1], p, G[:1], h, A[:1], b))
    np.testing.assert_array_equal(shared.x, repeated.x)
    np.testing.assert_array_equal(shared.v, repeated.v)
    w = np.random.default_rng(0).standard_normal(p.shape)
    r, k = np.zeros((11, qp.rows)), (shared.factors, repeated.factors)
    for a, c in zip(*(f.solve(w, r) for f in k), strict=True):
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("form", ["dual", "primal"])
def test_every_instruction_set_solves_every_remainder_of_a_pack(isa, form):
    for count in (1, 2, 3, 5, 9):
        arrays = families.batch("std", 7, 9, 2, count)
        _, found = solve(arrays, isa=isa, form=form)
        _, plain = solve(arrays, isa="scalar", form=form)
        np.testing.assert_allclose(found.x, plain.x, rtol=0, atol=1e-12)


def test_patterns_are_the_matrices_they_describe():
    rng = np.random.default_rng(2)
    Q, p, G, h, A, b = families.batch("std", 9, 11, 2, 6)
    keep = {"G": rng.random((11, 9)) < 0.5, "A": rng.random((2, 9)) < 0.8}
    G, A, Q = G * keep["G"], A * keep["A"], np.stack([np.diag(np.diag(k)) for k in Q])
    b = np.einsum("bmn,bn->bm", A, p)
    h = np.einsum("bmn,bn->bm", G, p) + 1
    i = np.arange(9)
    sparse = kernels.DenseQP(9, 2, 11, Q=(i, i), A=np.nonzero(keep["A"]), G=np.nonzero(keep["G"]))
    found = sparse.solve(Q[:, i, i], p, A[:, keep["A"]], b, G[:, keep["G"]], h)
    _, full = solve((Q, p, G, h, A, b))
    assert not found.status.any()
    np.testing.assert_allclose(found.x, full.x, rtol=0, atol=1e-12)
    empty = kernels.DenseQP(9, 2, 11, Q=(i[:0], i[:0]))
    bounded = np.concatenate([np.eye(9)[None].repeat(6, 0), -np.eye(9)[None].repeat(6, 0)], axis=1)[:, :11]
    _, lp = solve((0 * Q, p, bounded, np.ones((6, 11)), A, 0 * b))
    found = empty.solve(np.zeros((1, 0)), p, A, 0 * b, bounded, np.ones((6, 11)))
    np.testing.assert_array_equal(found.status, lp.status)


def test_the_symmetric_part_of_Q_counts():
    Q, p, G, h, A, b = families.batch("std", 6, 6, 1, 4)
    skew = np.random.default_rng(0).standard_normal((6, 6))
    _, plain = solve((Q, p, G, h, A, b))
    _, found = solve((Q + skew - skew.T, p, G, h, A, b))
    np.testing.assert_allclose(found.x, plain.x, rtol=0, atol=1e-12)


def test_a_start_at_the_solution_and_factors_of_a_given_point():
    arrays = families.batch("std", 10, 10, 2, 9)
    qp, found = solve(arrays)
    _, warm = solve(arrays, start=(found.x, found.v))
    assert not warm.status.any() and not warm.iterations.any()
    np.testing.assert_allclose(warm.x, found.x, rtol=0, atol=1e-12)
    _, held = solve(arrays, start=(found.x, found.v), factor_only=True)
    w, zero = np.random.default_rng(0).standard_normal((9, 10)), np.zeros((9, qp.rows))
    for a, b in zip(held.factors.solve(w, zero)[:2], found.factors.solve(w, zero)[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


def test_numbers_that_are_not_finite_fail_and_touch_no_neighbor():
    arrays = [a.copy() for a in families.batch("std", 8, 8, 2, 8)]
    _, clean = solve(arrays)
    for k, a in enumerate(arrays):
        for bad in (np.nan, np.inf):
            held = a[3].copy()
            a[3].flat[-1] = bad
            _, found = solve(arrays)
            a[3] = held
            assert found.status[3] != 0, (k, bad)
            good = np.arange(8) != 3
            np.testing.assert_array_equal(found.x[good], clean.x[good])


def test_an_objective_that_is_not_convex_is_refused():
    box = np.vstack([np.eye(2), -np.eye(2)])[None]
    _, found = solve((np.diag([1.0, -1.0])[None], np.zeros((1, 2)), box, np.ones((1, 4)), np.zeros((1, 0, 2)), np.zeros((1, 0))))
    assert found.status[0] not in (0, 1, 2)


def test_malformed_structures_and_operands_raise():
    with pytest.raises(BuildError):
        kernels.DenseQP(0, 0, 1)
    with pytest.raises(BuildError):
        kernels.DenseQP(2, 0, 1, G=(np.array([1]), np.array([0])))
    with pytest.raises(BuildError):
        kernels.DenseQP(2, 0, 1, Q=(np.array([1]), np.array([0])))
    arrays = families.batch("std", 4, 4, 1, 3)
    for k in range(6):
        wrong = list(arrays)
        wrong[k] = wrong[k][:2] if k else wrong[k][:, :3]
        with pytest.raises(ShapeError):
            solve_sized(wrong)
    empty = [a[:0] for a in arrays]
    assert solve_sized(empty).x.shape == (0, 4)


def solve_sized(arrays):
    Q, p, G, h, A, b = arrays
    return kernels.DenseQP(4, 1, 4).solve(Q, p, A, b, G, h)


def test_pickling_rebuilds_it():
    qp = pickle.loads(pickle.dumps(kernels.DenseQP(3, 1, 2)))
    assert (qp.n, qp.equalities, qp.inequalities) == (3, 1, 2)


def test_random_bytes_as_numbers_never_crash():
    """Any doubles at all: the kernel answers, and says solved only of points that satisfy the conditions it reports."""
    rng = np.random.default_rng(0)
    for n, p, m in ((1, 0, 0), (2, 1, 0), (3, 0, 5), (5, 2, 3), (4, 4, 13)):
        shapes = ((8, n, n), (8, n), (8, p, n), (8, p), (8, m, n), (8, m))
        for _ in range(6):
            data = [rng.integers(0, 1 << 63, s, dtype=np.int64).view(np.float64) for s in shapes]
            found = kernels.DenseQP(n, p, m).solve(*data)
            assert ((found.status != 0) | (found.norm <= 1e-11)).all()
            found.factors.solve(np.ones((8, n)), np.ones((8, p + m)))
