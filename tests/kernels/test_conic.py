"""The lanes interior point: optimality conditions, certificates, Clarabel, and its promises about bits."""

import copy
import pickle

import numpy as np
import pytest

from layercompiler.errors import BuildError, LayerCompilerError, OptionError, ShapeError
from layercompiler.kernels import Conic, available
from layercompiler.status import Status
from tests.kernels.random_programs import interior, matrix_programs, programs, rows, structure

pytestmark = pytest.mark.skipif(not available(), reason="the kernels are not built")
KINDS = ["l", "zl", "q", "zlq", "s", "zlqs", "e", "p", "zlep", "zlqsep"]


def matrices(n, m, P, A, data, i):
    p, a = np.zeros((n, n)), np.zeros((m, n))
    p[P], a[A] = data[0][i], data[2][i]
    return p + np.triu(p, 1).T, a


@pytest.mark.parametrize("kinds", KINDS)
def test_optimality_conditions(kinds):
    rng = np.random.default_rng(sum(map(ord, kinds)))
    missed = total = 0
    for _ in range(6):
        n, cones = structure(rng, kinds)
        m = rows(cones)
        P, A, data = programs(rng, n, cones, 12)
        found = Conic(n, P, A, cones).solve(*data)
        total += 12
        missed += int((found.status != Status.SOLVED).sum())
        for i in np.flatnonzero(found.status == Status.SOLVED):
            p, a = matrices(n, m, P, A, data, i)
            x, y, s = found.x[i], found.y[i], found.s[i]
            size = 1 + max(np.abs(v).max(initial=0) for v in (x, y, s, data[1][i], data[3][i]))
            assert np.abs(p @ x + a.T @ y + data[1][i]).max() < 1e-6 * size
            assert np.abs(a @ x + s - data[3][i]).max(initial=0) < 1e-6 * size
            assert abs(s @ y) < 1e-5 * size**2
            u, v = interior(rng, cones, dual=True), interior(rng, cones)  # s in K, y in K*: products with inner points are not negative
            free = cones[0][1] if cones[0][0] == "zero" else 0
            assert s[free:] @ u[free:] > -1e-6 * size and y[free:] @ v[free:] > -1e-6 * size
    assert missed <= 0.02 * total


@pytest.mark.parametrize("kinds", ["zlq", "zlqsep"])
@pytest.mark.parametrize(("kind", "status"), [("primal", Status.PRIMAL_INFEASIBLE), ("dual", Status.DUAL_INFEASIBLE)])
def test_certificates(kinds, kind, status):
    rng = np.random.default_rng(7)
    for _ in range(4):
        n, cones = structure(rng, kinds)
        m = rows(cones)
        n = min(n, m - 1)
        P, A, data = programs(rng, n, cones, 8, kind)
        found = Conic(n, P, A, cones).solve(*data)
        assert (found.status == status).mean() > 0.99
        for i in np.flatnonzero(found.status == status):
            p, a = matrices(n, m, P, A, data, i)
            if kind == "primal":
                assert abs(data[3][i] @ found.y[i] + 1) < 1e-9
                assert np.abs(a.T @ found.y[i]).max() < 1e-6 * (1 + np.abs(found.y[i]).max())
            else:
                assert abs(data[1][i] @ found.x[i] + 1) < 1e-9
                assert np.abs(a @ found.x[i] + found.s[i]).max() < 1e-6 * (1 + np.abs(found.x[i]).max())
                assert np.abs(p @ found.x[i]).max() < 1e-6 * (1 + np.abs(found.x[i]).max())


@pytest.mark.parametrize("orders", [(8,), (5, 9), (14,)])
@pytest.mark.parametrize("kind", ["solvable", "primal", "dual"])
def test_matrix_variables_eliminated_or_not(orders, kind):
    """A structural zero of P on each variable keeps it in the linear system: another route to the same points and verdicts."""
    rng = np.random.default_rng([*orders, len(kind)])
    for _ in range(3):
        n, cones, P, A, data = matrix_programs(rng, orders, 9, kind)
        kept = [j for j in range(n) if j not in set(P[0])]
        wide = tuple(np.r_[i, kept] for i in P), (np.c_[data[0], np.zeros((9, len(kept)))], *data[1:])
        ours, theirs = Conic(n, P, A, cones), Conic(n, wide[0], A, cones)
        assert ours.order < theirs.order - sum(k * (k + 1) // 2 for k in orders[-1:])
        found, other = ours.solve(*data), theirs.solve(*wide[1])
        right = [0] if kind == "solvable" else [1, 2]
        assert np.isin([found.status, other.status], [*right, Status.ITERATION_LIMIT, Status.INACCURATE]).all()
        assert np.isin(found.status, right).mean() >= (1.0 if kind == "solvable" else 0.8)
        if kind == "solvable":
            value, reference = ((r.x * data[1]).sum(1) for r in (found, other))
            assert np.abs(value - reference).max() < 1e-5 * (1 + np.abs(reference).max())
            assert found.quality.max() < 1e-8
        alone = ours.solve(*(v[4:5] for v in data))
        for a, b in zip(fields(alone), fields(found, slice(4, 5)), strict=True):
            np.testing.assert_array_equal(a, b)


def fields(found, at=slice(None)):
    return [getattr(found, name)[at] for name in ("x", "y", "s", "status", "iterations")]


@pytest.mark.parametrize("kinds", ["zlq", "zlqsep"])
def test_same_bits_alone_in_a_pack_and_on_threads(kinds):
    rng = np.random.default_rng(11)
    n, cones = structure(rng, kinds)
    P, A, data = programs(rng, n, cones, 13)
    conic = Conic(n, P, A, cones)
    whole = conic.solve(*data)
    for threads in (2, 5):
        for got, want in zip(fields(conic.solve(*data, threads=threads)), fields(whole), strict=True):
            np.testing.assert_array_equal(got, want)
    for at in (slice(0, 1), slice(9, 10), slice(3, 6), slice(4, 8), slice(5, 13)):
        for got, want in zip(fields(conic.solve(*(d[at] for d in data))), fields(whole, at), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("order", [1, 2, 3, 8, 9, 16, 17, 33])
def test_semidefinite_cones_alone_have_the_bits_of_a_pack(order):
    rng = np.random.default_rng(order)
    cones = [("zero", 2), ("nonnegative", 2), ("psd", order), ("psd", (order + 1) // 2)]
    P, A, data = programs(rng, 4, cones, 9)
    conic = Conic(4, P, A, cones)
    whole = conic.solve(*data)
    for i in (0, 5):
        for got, want in zip(fields(conic.solve(*(d[i : i + 1] for d in data))), fields(whole, slice(i, i + 1)), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kinds", ["zlq", "zlqsep"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_bad_instance_touches_no_other(kinds, bad):
    rng = np.random.default_rng(12)
    n, cones = structure(rng, kinds)
    P, A, data = programs(rng, n, cones, 9)
    conic = Conic(n, P, A, cones)
    whole = conic.solve(*data)
    for operand in (1, 2, 3):
        spoiled = [d.copy() for d in data]
        spoiled[operand][4] = bad
        found = conic.solve(*spoiled)
        keep = np.arange(9) != 4
        for got, want in zip(fields(found, keep), fields(whole, keep), strict=True):
            np.testing.assert_array_equal(got, want)
        assert found.status[4] != Status.SOLVED or bad == 1e300
        if not np.isfinite(bad):
            assert found.status[4] == Status.NONFINITE_INPUT and np.isnan(found.x[4]).all()


def test_shared_operands():
    rng = np.random.default_rng(13)
    n, cones = structure(rng, "zlq")
    P, A, data = programs(rng, n, cones, 11)
    conic = Conic(n, P, A, cones)
    shared = [data[0][:1], data[1], data[2][:1], data[3][:1]]
    repeated = [np.repeat(d[:1], 11, 0) if len(d) == 1 else d for d in shared]
    for got, want in zip(fields(conic.solve(*shared)), fields(conic.solve(*repeated)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_warm_start_helps_and_a_bad_one_does_no_harm():
    rng = np.random.default_rng(14)
    n, cones = structure(rng, "zlqs")
    P, A, data = programs(rng, n, cones, 16)
    conic = Conic(n, P, A, cones)
    cold = conic.solve(*data)
    near = [data[0], data[1] * (1 + 1e-4), data[2], data[3]]
    warm = conic.solve(*near, warm_start=(cold.x, cold.y, cold.s))
    assert (warm.status == cold.status).all()
    np.testing.assert_allclose(warm.x, conic.solve(*near).x, atol=1e-4)
    bad = conic.solve(*near, warm_start=(np.full_like(cold.x, np.nan), -cold.y, cold.s))
    assert (bad.status == cold.status).all()


def test_a_tighter_solve_goes_on_from_where_a_rough_one_stopped():
    rng = np.random.default_rng(21)
    n, cones = structure(rng, "zlqs")
    P, A, data = programs(rng, n, cones, 16)
    conic = Conic(n, P, A, cones)
    rough, cold = conic.solve(*data, tol=1e-6), conic.solve(*data, tol=1e-10)
    warm = conic.solve(*data, tol=1e-10, warm_start=(rough.x, rough.y, rough.s))
    both = (warm.status == Status.SOLVED) & (cold.status == Status.SOLVED)
    assert both.sum() >= 14
    assert warm.iterations[both].mean() < 0.5 * cold.iterations[both].mean()
    np.testing.assert_allclose(warm.x[both], cold.x[both], atol=1e-6 * (1 + np.abs(cold.x[both]).max()))


@pytest.mark.parametrize("kinds", ["zlq", "zlqsep"])
def test_stragglers_and_shared_matrices_change_no_bit(kinds):
    """Instances of very different difficulty, many packs: the last ones of each go on together, in packs of any width."""
    rng = np.random.default_rng(22)
    n, cones = structure(rng, kinds)
    P, A, data = programs(rng, n, cones, 75)
    data = [data[0], data[1] * 10.0 ** rng.uniform(-3, 3, (75, 1)), data[2], data[3]]
    data[2][::3] *= 10.0 ** rng.uniform(-2, 2, (25, data[2].shape[1]))
    conic = Conic(n, P, A, cones)
    for operands in (data, [data[0][:1], data[1], data[2][:1], data[3]]):
        whole = conic.solve(*operands)
        assert whole.iterations.max() > whole.iterations.min() + 3
        for threads in (1, 2, 7):
            for got, want in zip(fields(conic.solve(*operands, threads=threads)), fields(whole), strict=True):
                np.testing.assert_array_equal(got, want)
        for i in (0, 33, 74):
            alone = conic.solve(*(d[i : i + 1] if len(d) > 1 else d for d in operands))
            for got, want in zip(fields(alone), fields(whole, slice(i, i + 1)), strict=True):
                np.testing.assert_array_equal(got, want)


def test_limits():
    rng = np.random.default_rng(15)
    n, cones = structure(rng, "zlq")
    P, A, data = programs(rng, n, cones, 4)
    conic = Conic(n, P, A, cones)
    assert (conic.solve(*data, max_iter=2).status == Status.ITERATION_LIMIT).all()
    assert (conic.solve(*data, max_iter=2).iterations == 2).all()
    assert (conic.solve(*data, time_limit=0.0).status == Status.TIME_LIMIT).all()
    for wrong in ({"tol": 0.0}, {"max_iter": -1}, {"time_limit": -1.0}):
        with pytest.raises(OptionError):
            conic.solve(*data, **wrong)


def test_no_constraints_and_only_equalities():
    found = Conic(2, ([0, 1], [0, 1]), ([], []), []).solve(
        np.array([[2.0, 4.0]]), np.array([[-2.0, 4.0]]), np.zeros((1, 0)), np.zeros((1, 0))
    )
    np.testing.assert_allclose(found.x, [[1, -1]], atol=1e-6)
    equal = Conic(2, ([0, 1], [0, 1]), ([0, 0], [0, 1]), [("zero", 1)])
    found = equal.solve(np.array([[1.0, 1.0]]), np.zeros((1, 2)), np.array([[1.0, 1.0]]), np.array([[2.0]]))
    np.testing.assert_allclose(found.x, [[1, 1]], atol=1e-6)


@pytest.mark.parametrize("kinds", ["zlq", "zlqsep"])
def test_instruction_sets_agree_to_the_last_bit(kinds):
    """Every multiply-add is fused in all of them; without hardware for it (scalar) only to rounding."""
    rng = np.random.default_rng(18)
    n, cones = structure(rng, kinds)
    P, A, data = programs(rng, n, cones, 11)
    best = Conic(n, P, A, cones).solve(*data)
    for isa in ("avx512", "avx2", "neon", "scalar"):
        try:
            conic = Conic(n, P, A, cones, isa=isa)
        except OptionError:
            continue
        found = conic.solve(*data)
        if isa == "scalar":
            np.testing.assert_array_equal(found.status, best.status)
            np.testing.assert_allclose(found.x, best.x, atol=1e-4 * (1 + np.abs(best.x).max()))
        else:
            for got, want in zip(fields(found), fields(best), strict=True):
                np.testing.assert_array_equal(got, want)


def test_copies():
    rng = np.random.default_rng(16)
    n, cones = structure(rng, "zlqsep")
    P, A, data = programs(rng, n, cones, 3)
    conic = Conic(n, P, A, cones)
    for other in (pickle.loads(pickle.dumps(conic)), copy.deepcopy(conic)):
        np.testing.assert_array_equal(other.solve(*data).x, conic.solve(*data).x)


def test_shapes():
    conic = Conic(2, ([], []), ([0], [1]), [("nonnegative", 1)])
    assert conic.solve(np.zeros((1, 0)), np.zeros((0, 2)), np.zeros((1, 1)), np.zeros((1, 1))).x.shape == (0, 2)
    with pytest.raises(ShapeError):
        conic.solve(np.zeros((1, 0)), np.zeros((3, 2)), np.zeros((2, 1)), np.zeros((1, 1)))
    with pytest.raises(ShapeError):
        conic.solve(np.zeros((1, 0)), np.zeros((1, 3)), np.zeros((1, 1)), np.zeros((1, 1)))


def test_malformed_structures_are_refused():
    """Structures broken in one place each; most are small, so that wrong indices would land in live memory."""
    rng = np.random.default_rng(17)
    refused = 0
    while refused < 8000:
        n, cones = structure(rng, rng.choice(["l", "zlq", "zlqsep", "s", "e", "p"]))
        m = rows(cones)
        count = int(rng.integers(1, 20))
        flat = rng.choice(m * n, min(count, m * n), replace=False)
        A = [flat // n, flat % n]
        k = rng.integers(n, size=2)
        P = [np.array([k.min()]), np.array([k.max()])]
        far = int(rng.choice([-1, n, m, 2**31, 2**40, -(2**40), n + 1])) + int(rng.integers(3))
        match int(rng.integers(9)):
            case 0:
                A[0][rng.integers(len(flat))] = max(far, m) if far >= 0 else far - 3
            case 1:
                A[1][rng.integers(len(flat))] = max(far, n) if far >= 0 else far - 3
            case 2:
                P[1][0] = max(far, n) if far >= 0 else far - 3
            case 3:
                P[0][0], P[1][0] = n, 0
            case 4:
                A = [np.r_[a, a[:1]] for a in A]
            case 5:
                A[0] = A[0][:-1]
            case 6:
                cones = [*cones, ("zero", 1)]
            case 7:
                kind = rng.choice(["power", "second_order", "psd"])
                cones = [(kind, {"power": float(rng.choice([0, 1, -1, np.nan, 2])), "second_order": 0, "psd": -3}[kind])]
            case 8:
                cones, A = [("nonnegative", 1)], [np.array([1]), np.array([0])]
        with pytest.raises((BuildError, OverflowError)):
            Conic(n, P, A, cones)
        refused += 1
    with pytest.raises(BuildError):
        Conic(1, ([], []), ([], []), [("unheard", 1)])
    with pytest.raises(LayerCompilerError):
        Conic(1, ([], []), ([0.5], [0]), [("nonnegative", 1)])
