"""The dense QP kernels in float32: what they call solved has the active rows of float64; what they cannot tell goes to float64."""

import pickle

import numpy as np
import pytest

from layercompiler import kernels
from layercompiler.errors import BuildError
from tests.kernels.test_dense_qp import instruction_sets
from tests.qp import families

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")
BY_DOUBLES = 1e-11  # norm up to which an instance was solved in float64


def both(arrays, isa=None, threads=1):
    """The operands rounded to float32, solved in float32 and, as they are then, in float64."""
    Q, p, G, h, A, b = (np.ascontiguousarray(a, np.float32) for a in arrays)
    Q = (Q + np.swapaxes(Q, 1, 2)) / 2
    operands = (Q, p, A, b, G, h)
    out = []
    for dtype in (np.float32, np.float64):
        qp = kernels.DenseQP(p.shape[-1], b.shape[-1], h.shape[-1], isa=isa, dtype=dtype)
        out.append(qp.solve(*(a.astype(dtype) for a in operands), threads=threads))
    return out


def gradients(found, w, v):
    """Of x'w + (duals)'v."""
    dtype = found.x.dtype
    return found.factors.gradients(w.astype(dtype), v.astype(dtype), found.x, found.y, [True] * 6)


def check(single, double, p, seed=0):
    """Active rows, points to 1e-3 and gradients to 1e-2, both of their largest entry; how many instances float32 solved."""
    np.testing.assert_array_equal(single.status, double.status)
    assert single.x.dtype == single.y.dtype == np.float32 and single.norm.dtype == np.float64
    solved = single.status == 0
    np.testing.assert_array_equal((single.v[:, p:] > 0)[solved], (double.v[:, p:] > 0)[solved])
    size = np.abs(double.x).max(axis=1, initial=0.0)
    assert (np.abs(single.x - double.x).max(axis=1, initial=0.0) <= 1e-3 * size)[solved].all()
    rng = np.random.default_rng(seed)
    w, v = rng.standard_normal(single.x.shape), rng.standard_normal(single.v.shape)
    got, expected = gradients(single, w, v), gradients(double, w, v)
    assert (got[2] <= 1e-3).all()
    pairs = list(zip(got[3], expected[3], strict=True))
    whole = np.max([np.abs(e).reshape(len(e), -1).max(axis=1, initial=0.0) for _, e in pairs], axis=0)
    for a, e in pairs:
        assert a.dtype == np.float32
        off = np.abs(a - e).reshape(len(e), -1).max(axis=1, initial=0.0)
        assert (off <= 1e-2 * whole)[solved & (double.reach <= 1e-8)].all()
    return int((solved & (single.norm > BY_DOUBLES)).sum())


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("kind", ["std", "ill", "dqp", "optnet"])
@pytest.mark.parametrize("n", [4, 10, 33])
def test_active_rows_points_and_gradients_are_those_of_float64(isa, kind, n):
    single, double = both(families.batch(kind, n, n, n // 4, 37), isa)
    count = check(single, double, n // 4)
    assert count >= (30 if kind != "ill" else 1)  # else the test would be one of float64


@pytest.mark.parametrize("kind", families.KINDS)
def test_mixed_programs_end_as_in_float64(kind):
    """Degenerate, scaled, infeasible, unbounded: every status, and whatever is solved."""
    rng = np.random.default_rng(3)
    for n in (2, 5, 12):
        cases = [families.mixed(kind, n, rng)[0] for _ in range(12)]
        single, double = both([np.stack(a) for a in zip(*cases, strict=True)])
        check(single, double, cases[0][5].shape[0])


def test_nearly_active_rows_are_left_to_float64():
    """A row at 1e-7 and one at -1e-7 of the solution: float32 could not tell them apart."""
    n, rng = 6, np.random.default_rng(0)
    Q = np.stack([np.diag(rng.uniform(0.5, 2.0, n)) for _ in range(9)])
    G, x = np.eye(n)[None].repeat(9, 0), rng.uniform(1.0, 2.0, (9, n))
    p, A, b = -np.einsum("bij,bj->bi", Q, x), np.zeros((9, 0, n)), np.zeros((9, 0))
    near, clear = np.array([1e-7, -1e-7, 0.5, -0.5, 2.0, 3.0]), np.array([0.1, -0.1, 0.5, -0.5, 2.0, 3.0])
    single, double = both((Q, p, G, x + near, A, b))
    assert (single.norm <= BY_DOUBLES).all()
    check(single, double, 0)
    single, double = both((Q, p, G, x + clear, A, b))
    assert (single.norm > BY_DOUBLES).sum() >= 5  # where all is exact by chance, floats have no residual either
    check(single, double, 0)


def test_an_instance_gives_the_same_bits_alone_in_any_batch_and_on_any_threads():
    arrays = families.batch("std", 13, 20, 3, 41)
    whole, threaded = both(arrays)[0], both(arrays, threads=3)[0]
    w, v = np.random.default_rng(0).standard_normal((41, 13)), np.zeros((41, 23))
    expected = gradients(whole, w, v)[3]
    np.testing.assert_array_equal(threaded.x, whole.x)
    np.testing.assert_array_equal(threaded.v, whole.v)
    for part in (slice(4, 5), slice(3, 10), slice(10, 40)):
        found = both([a[part] for a in arrays])[0]
        np.testing.assert_array_equal(found.x, whole.x[part])
        np.testing.assert_array_equal(found.v, whole.v[part])
        for a, e in zip(gradients(found, w[part], v[part])[3], expected, strict=True):
            np.testing.assert_array_equal(a, e[part])


def test_matrices_that_the_batch_shares():
    """A batch of which float64 solves a part, beside the same with repeated matrices."""
    Q, p, G, _, A, _ = families.batch("std", 12, 15, 3, 20)
    b, h = np.einsum("mn,bn->bm", A[0], p), np.einsum("mn,bn->bm", G[0], p) + 1
    h[::3, 0] = np.einsum("n,bn->b", G[0, 0], p)[::3]
    shared, double = both((Q[:1], p, G[:1], h, A[:1], b))
    repeated, _ = both((Q[:1].repeat(20, 0), p, G[:1].repeat(20, 0), h, A[:1].repeat(20, 0), b))
    np.testing.assert_array_equal(shared.x, repeated.x)
    check(shared, double, 3)


def test_many_rows_and_semidefinite_objectives_are_float64_throughout():
    arrays = families.batch("std", 4, 40, 1, 7)
    single, double = both(arrays)
    assert (single.norm <= BY_DOUBLES).all()
    check(single, double, 1)


def test_it_refuses_other_numbers_and_starts_and_pickles():
    with pytest.raises(BuildError, match="float64 or float32"):
        kernels.DenseQP(2, 0, 1, dtype=np.float16)
    qp = kernels.DenseQP(2, 0, 1, dtype=np.float32)
    assert pickle.loads(pickle.dumps(qp)).dtype == np.float32
    one = (np.eye(2)[None], np.ones((1, 2)), np.zeros((1, 0, 2)), np.zeros((1, 0)), np.ones((1, 1, 2)), np.ones((1, 1)))
    with pytest.raises(BuildError, match="starts from nothing"):
        qp.solve(*one, start=(np.zeros((1, 2)), np.zeros((1, 1))))
    empty = qp.solve(*(a[:0] for a in one))
    assert empty.x.shape == (0, 2) and empty.x.dtype == np.float32
