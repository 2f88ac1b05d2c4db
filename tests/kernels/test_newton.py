"""Compiled Newton refinement against the array version in `layercompiler.derivatives`: points, residuals, derivatives, bits."""

import copy
import pickle

import numpy as np
import pytest

from layercompiler import cones as C
from layercompiler.derivatives.products import Products
from layercompiler.derivatives.residual_map import ResidualMap
from layercompiler.errors import BuildError, ShapeError
from layercompiler.kernels import Conic, Newton, available
from layercompiler.programs.cone import Data, Structure
from tests.kernels.random_programs import programs, structure

pytestmark = pytest.mark.skipif(not available(), reason="the kernels are not built")
KINDS = ["l", "zl", "q", "zlq", "s", "zs", "e", "p", "zlqep", "zlqsep"]


def blocks(cones):
    """The cones as the package writes them."""
    kinds = {
        "zero": lambda k: (C.Zero(), k),
        "nonnegative": lambda k: (C.Nonnegative(), k),
        "second_order": lambda k: (C.SecondOrder(k), 1),
        "psd": lambda k: (C.PSD(k), 1),
        "exponential": lambda k: (C.Exponential(), k),
        "power": lambda k: (C.Power(k), 1),
    }
    return C.Product(tuple(kinds[kind](k) for kind, k in cones))


def case(kinds, seed, batch=13):
    """A structure, data of a batch, and rough solutions; only instances that the interior point solved."""
    rng = np.random.default_rng(seed)
    n, cones = structure(rng, kinds)
    P, A, data = programs(rng, n, cones, batch)
    order = np.lexsort((A[1], A[0]))
    A, data = tuple(a[order] for a in A), (data[0], data[1], np.ascontiguousarray(data[2][:, order]), data[3])
    rough = Conic(n, P, A, cones).solve(*data, tol=1e-6)
    good = rough.status == 0
    data = tuple(d[good] for d in data)
    return n, P, A, cones, data, rough.x[good], (rough.y - rough.s)[good]


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_same_points_and_derivatives_as_the_array_version(kinds, seed):
    n, P, A, cones, data, x, v = case(kinds, seed)
    found = Newton(n, P, A, cones).refine(*data, x, v)
    program = Structure(n, *P, *A, blocks(cones))
    numbers = Data(data[0], data[1], np.zeros((len(x), 1)), data[2], data[3])
    reference = ResidualMap(program, numbers)
    products = Products.of(program, numbers)
    point, _, _ = reference.refine(numbers, products, x, v, 12)
    assert ((found.norm < 1e-11) >= (point.norm < 1e-11)).all()
    here = reference.point(numbers, products, found.x, found.v)
    size = 1 + np.abs(found.v).max()
    np.testing.assert_allclose(found.y, here.projection.y, atol=1e-14 * size)
    np.testing.assert_allclose(found.F_x, here.F_x, atol=1e-13 * size)
    np.testing.assert_allclose(found.F_y, here.F_y, atol=1e-13 * size)
    rng = np.random.default_rng(seed)
    g, h = rng.normal(size=x.shape), rng.normal(size=v.shape)
    u, t, residual = found.linear.solve(g, h)
    u_, t_, residual_ = reference.linearize(numbers, here).solve(g, h)
    good = (residual < 1e-10) & (residual_ < 1e-10)
    assert (good == (residual_ < 1e-10)).mean() > 0.9
    for mine, theirs in ((u, u_), (t, t_)):
        np.testing.assert_allclose(mine[good], theirs[good], rtol=1e-7, atol=1e-8 * (1 + np.abs(theirs[good]).max(initial=0)))


@pytest.mark.parametrize("quadratic", [False, True])
def test_turned_variables_give_what_turned_rows_give(quadratic):
    """Two matrix variables, coupled by equalities and by a third cone whose rows hold entries of the first."""
    rng = np.random.default_rng(11)
    orders, batch = (3, 5), 9
    sizes = [k * (k + 1) // 2 for k in orders]
    n, equal = sum(sizes), 4
    cones = [("zero", equal), ("psd", 2), ("psd", 3), ("psd", 5)]
    dense = rng.random((equal + 3, n)) < 0.6
    rows, cols = np.nonzero(dense)
    own = rng.uniform(0.5, 2, n)
    A = (np.r_[rows, equal + 3 + np.arange(n)], np.r_[cols, np.arange(n)])
    P = (np.arange(n), np.arange(n)) if quadratic else (np.zeros(0, int), np.zeros(0, int))
    weight = np.repeat([0.7, 0.0], sizes) * own**2
    data = (
        np.tile(weight, (batch, 1)) if quadratic else np.zeros((batch, 0)),
        rng.normal(size=(batch, n)),
        np.concatenate([rng.normal(size=(batch, len(rows))), np.tile(-own, (batch, 1))], axis=1),
        rng.normal(size=(batch, equal + 3 + n)),
    )
    x, v = rng.normal(size=(batch, n)), rng.normal(size=(batch, equal + 3 + n))
    sides = rng.normal(size=x.shape), rng.normal(size=v.shape)
    plain, turned = Newton(n, P, A, cones), Newton(n, P, A, cones, turns=[1, 2])
    assert turned.factor_nnz < plain.factor_nnz
    want, got = (k.refine(*data, x, v, steps=0).linear.solve(*sides) for k in (plain, turned))
    good = (want[2] < 1e-11) & (got[2] < 1e-11)
    assert good.sum() >= 6  # at some random points the system is singular
    for a, b in zip(got[:2], want[:2], strict=True):
        np.testing.assert_allclose(a[good], b[good], rtol=1e-7, atol=1e-8 * np.abs(b[good]).max())


@pytest.mark.parametrize("order", [1, 2, 4, 10, 31])
def test_matrices_of_all_kinds_are_projected_as_by_lapack(order):
    """Repeated, vanishing, opposite and far apart eigenvalues, and points of the cone, which stay exactly as they are."""
    rng = np.random.default_rng(order)
    spectra = [
        rng.normal(size=order),
        np.ones(order),
        -np.ones(order),
        np.zeros(order),
        np.sign(rng.normal(size=order)),
        rng.normal(size=order) * 10.0 ** rng.uniform(-12, 3, order),
        np.r_[1.0, np.zeros(order - 1)],
        np.abs(rng.normal(size=order)),
    ]
    bases = [np.linalg.qr(rng.normal(size=(order, order)))[0] for _ in spectra]
    i, j = np.triu_indices(order)
    v = np.array([((Q * w) @ Q.T)[j, i] * np.where(i == j, 1.0, np.sqrt(2.0)) for w, Q in zip(spectra, bases, strict=True)])
    B, m = v.shape
    newton = Newton(1, ([], []), ([0], [0]), [("psd", order)])
    found = newton.refine(np.zeros((1, 0)), np.zeros((B, 1)), np.ones((1, 1)), np.zeros((B, m)), np.zeros((B, 1)), v, steps=0)
    want = blocks([("psd", order)]).project_dual(v)
    error = np.abs(found.y - want.y).max(axis=1)
    assert (error <= 1e-14 * np.sqrt(order) * np.linalg.norm(v, axis=1)).all()
    np.testing.assert_array_equal(found.y[7], v[7])
    assert (found.suspect | want.smooth).all()
    assert not found.suspect[0]


@pytest.mark.parametrize("kinds", ["zl", "zlqep", "zlqsep"])
def test_same_bits_alone_in_a_pack_and_on_threads(kinds):
    n, P, A, cones, data, x, v = case(kinds, 5)
    newton = Newton(n, P, A, cones)

    def results(at=slice(None), **options):
        r = newton.refine(*(d[at] for d in data), x[at], v[at], **options)
        return [r.x, r.v, r.y, r.norm, r.taken, *r.linear.solve(np.ones_like(x[at]), np.ones_like(v[at]))]

    whole = results()
    for got, want in zip(results(threads=3), whole, strict=True):
        np.testing.assert_array_equal(got, want)
    for at in (slice(0, 1), slice(2, 5), slice(3, 11)):
        for got, want in zip(results(at), whole, strict=True):
            np.testing.assert_array_equal(got, want[at])


@pytest.mark.parametrize("kinds", ["zl", "zlqep", "zlqsep"])
def test_nan_touches_no_other(kinds):
    n, P, A, cones, data, x, v = case(kinds, 6)
    newton = Newton(n, P, A, cones)
    whole = newton.refine(*data, x, v)
    keep = np.arange(len(x)) != 2
    for operand in (1, 2, 3):
        spoiled = [d.copy() for d in data]
        spoiled[operand][2] = np.nan
        r = newton.refine(*spoiled, x, v)
        assert np.isinf(r.norm[2])
        np.testing.assert_array_equal(r.x[keep], whole.x[keep])
        ones = np.ones_like(x), np.ones_like(v)
        for got, want in zip(r.linear.solve(*ones), whole.linear.solve(*ones), strict=True):
            np.testing.assert_array_equal(got[keep], want[keep])


def test_far_and_special_points_are_projected_as_the_array_version_does():
    """Exponential and power cones over twelve decades, all regions and their boundaries."""
    rng = np.random.default_rng(8)
    special = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    grid = np.stack(np.meshgrid(special, special, special), -1).reshape(-1, 3)
    wild = rng.normal(size=(400, 3)) * 10.0 ** rng.uniform(-6, 6, (400, 3))
    v = np.concatenate([grid, wild, rng.normal(size=(200, 3))])
    for cones in ([("exponential", 1)], [("power", 0.3)], [("power", 0.5)], [("second_order", 3)]):
        newton = Newton(1, ([], []), ([0], [0]), cones)
        B = len(v)
        found = newton.refine(np.zeros((1, 0)), np.zeros((B, 1)), np.ones((1, 1)), np.zeros((B, 3)), np.zeros((B, 1)), v, steps=0)
        want = blocks(cones).project_dual(v)
        error = np.abs(found.y - want.y).max(axis=1) / np.maximum(np.abs(v).max(axis=1), 1e-300)
        assert error.max() < 2e-14


def test_malformed_structures_are_refused():
    """Structures broken in one place each, those of turned variables among them."""
    rng = np.random.default_rng(23)
    for _ in range(1000):
        order = int(rng.integers(2, 5))
        dim = order * (order + 1) // 2
        rows, cols = np.arange(dim), rng.permutation(dim + 2)[:dim]
        P, turns = ([], []), [0]
        far = int(rng.choice([-1, 2**31, 2**40, -(2**40), dim + 2, dim + 3]))
        at = int(rng.integers(dim))
        match int(rng.integers(7)):
            case 0:
                cols = np.where(rows == at, cols[(at + 1) % dim], cols)
            case 1:
                cols = np.where(rows == at, far, cols)
            case 2:
                rows = np.where(rows == at, far, rows)
            case 3:
                rows, cols = np.delete(rows, at), np.delete(cols, at)
            case 4:
                P = ([cols[at]], [cols[at]])
            case 5:
                P = ([cols[[at, at - 1]].min()], [cols[[at, at - 1]].max()])
            case 6:
                turns = [int(rng.choice([-1, 1, 2**31]))]
        with pytest.raises((BuildError, OverflowError)):
            Newton(dim + 2, P, (rows, cols), [("psd", order)], turns=turns)


def test_copies_and_refusals():
    n, P, A, cones, data, x, v = case("zlq", 9)
    newton = Newton(n, P, A, cones)
    for other in (pickle.loads(pickle.dumps(newton)), copy.deepcopy(newton)):
        np.testing.assert_array_equal(other.refine(*data, x, v).x, newton.refine(*data, x, v).x)
    for turns in ([1], [-1]):
        with pytest.raises(BuildError):
            Newton(3, ([], []), ([0, 1, 2], [0, 1, 2]), [("psd", 2)], turns=turns)
    # variables turn only where each row has one entry, in a column of its own, and P neither couples nor splits these columns
    for P, A in (
        (([], []), ([0, 1], [0, 1])),
        (([], []), ([0, 1, 2], [0, 1, 1])),
        (([], []), ([0, 1, 1, 2], [0, 1, 2, 3])),
        (([0], [1]), ([0, 1, 2], [0, 1, 2])),
        (([0, 1], [0, 1]), ([0, 1, 2], [0, 1, 2])),
    ):
        with pytest.raises(BuildError):
            Newton(4, P, A, [("psd", 2)], turns=[0])
    with pytest.raises(BuildError):
        Newton(2, ([], []), ([7], [1]), [("nonnegative", 2)])
    with pytest.raises(ShapeError):
        newton.refine(*data, x[:1], v)
    empty = newton.refine(*(d[:0] for d in data), x[:0], v[:0])
    assert empty.x.shape == (0, n) and empty.linear.solve(x[:0], v[:0])[0].shape == (0, n)
