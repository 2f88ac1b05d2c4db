"""Projections are the nearest points, proximal operators and regressions the minimisers; degenerate inputs; refusals."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, minimize
from sklearn.isotonic import isotonic_regression

from layercompiler import functions as lf
from layercompiler.errors import DtypeError, OptionError, ShapeError, SolveError

N = 5
rng = np.random.default_rng(0)
A, G, a, h, w = (
    rng.standard_normal((2, N)),
    rng.standard_normal((4, N)),
    rng.standard_normal(N),
    rng.random(4),
    np.array([1.0, -2, 0.5, 1, 0]),
)
rows, columns = np.array([0.2, 0.3, 0.5]), np.array([0.4, 0.6])
SETS = {  # projection, membership with a tolerance
    "nonnegative": (lf.project_nonnegative, lambda y: y >= 0),
    "box": (lambda x: lf.project_box(x, -0.5, 0.7), lambda y: (y >= -0.5) & (y <= 0.7)),
    "hyperplane": (lambda x: lf.project_hyperplane(x, a, 0.3), lambda y: np.isclose(y @ a, 0.3)),
    "halfspace": (lambda x: lf.project_halfspace(x, a, 0.3), lambda y: y @ a <= 0.3 + 1e-12),
    "affine": (lambda x: lf.project_affine(x, A, np.ones(2)), lambda y: np.isclose(y @ A.T, 1.0)),
    "simplex": (lambda x: lf.project_simplex(x, 2.0), lambda y: (y >= 0) & np.isclose(y.sum(-1, keepdims=True), 2.0)),
    "l1 ball": (lambda x: lf.project_l1_ball(x, 1.5), lambda y: np.abs(y).sum(-1) <= 1.5 + 1e-12),
    "l2 ball": (lambda x: lf.project_l2_ball(x, 1.5), lambda y: np.linalg.norm(y, axis=-1) <= 1.5 + 1e-12),
    "linf ball": (lambda x: lf.project_linf_ball(x, 0.5), lambda y: np.abs(y) <= 0.5),
    "box section": (
        lambda x: lf.project_box_section(x, -1.0, np.array([1, 1, np.inf, 2, 1]), w, 0.7),
        lambda y: (y >= -1) & (y[..., [4]] <= 1) & np.isclose(y @ w, 0.7)[..., None],
    ),
    "polyhedron": (
        lambda x: lf.project_polyhedron(x, a[None], np.array([0.1]), G, h),
        lambda y: np.isclose(y @ a, 0.1) & np.all(y @ G.T <= h + 1e-10, axis=-1),
    ),
    "second-order cone": (lf.project_second_order, lambda y: np.linalg.norm(y[..., 1:], axis=-1) <= y[..., 0] + 1e-12),
    "psd": (
        lambda x: _symmetric(lf.project_psd(_symmetric_matrix(x))),
        lambda y: np.linalg.eigvalsh(_symmetric_matrix(y)) >= -1e-12,
    ),
    "transport": (
        lambda x: lf.project_transport(x.reshape(*x.shape[:-1], 3, 2), rows, columns).reshape(x.shape),
        lambda y: (y >= 0) & np.isclose(y.reshape(*y.shape[:-1], 3, 2).sum(-1) @ np.ones(3), 1.0)[..., None],
    ),
    "increasing": (lf.isotonic, lambda y: np.diff(y) >= -1e-12),
}
SIZE = {"psd": 6, "transport": 6}


def _symmetric_matrix(x):
    M = np.zeros((*x.shape[:-1], 3, 3))
    i, j = np.tril_indices(3)
    M[..., i, j] = M[..., j, i] = x / np.where(i == j, 1, np.sqrt(2))
    return M


def _symmetric(M):
    i, j = np.tril_indices(3)
    return M[..., i, j] * np.where(i == j, 1, np.sqrt(2))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_nearest_point_of_a_convex_set(name, scale):
    project, member = SETS[name]
    generator = np.random.default_rng(1)
    n = SIZE.get(name, N)
    x = scale * generator.standard_normal((40, n))
    p = project(x)
    assert np.all(member(p))
    inside = project(3 * generator.standard_normal((60, n)))  # <x - p, z - p> <= 0 for all z of the set
    products = np.einsum("in,ijn->ij", x - p, inside[None] - p[:, None])
    assert products.max() <= 1e-9 * (1 + scale) ** 2
    np.testing.assert_allclose(project(p), p, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "project", [lambda x: lf.project_l1_sphere(x, 1.2), lambda x: lf.project_l2_sphere(x, 1.2), lambda x: lf.project_linf_sphere(x, 1.2)]
)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_nearest_point_of_a_sphere(project, scale):
    generator = np.random.default_rng(1)
    x = scale * generator.standard_normal((20, N))
    p, others = project(x), project(generator.standard_normal((3000, N)))
    np.testing.assert_allclose(project(p), p, rtol=1e-12)
    nearest = np.linalg.norm(x[:, None] - others[None], axis=-1).min(1)
    assert np.all(np.linalg.norm(x - p, axis=-1) <= nearest + 1e-12)


PROXES = {
    "lasso": (lambda x: lf.prox_lasso(x, 0.6, 0.5), lambda y: 0.3 * np.abs(y).sum()),
    "nonnegative lasso": (lambda x: lf.prox_nonnegative_lasso(x, 0.3), lambda y: 0.3 * y.sum() if np.all(y >= 0) else np.inf),
    "elastic net": (lambda x: lf.prox_elastic_net(x, 0.3, 0.8), lambda y: 0.3 * np.abs(y).sum() + 0.4 * (y * y).sum()),
    "nonnegative elastic net": (
        lambda x: lf.prox_nonnegative_elastic_net(x, 0.3, 0.8),
        lambda y: 0.3 * y.sum() + 0.4 * (y * y).sum() if np.all(y >= 0) else np.inf,
    ),
    "ridge": (lambda x: lf.prox_ridge(x, 0.8, 2.0), lambda y: 0.8 * (y * y).sum()),
    "nonnegative ridge": (lambda x: lf.prox_nonnegative_ridge(x, 0.8), lambda y: 0.4 * (y * y).sum() if np.all(y >= 0) else np.inf),
    "group lasso": (lambda x: lf.prox_group_lasso(x, 0.7), lambda y: 0.7 * np.linalg.norm(y, axis=-1).sum()),
    "nuclear": (lambda x: lf.prox_nuclear(x, 0.7), lambda y: 0.7 * np.linalg.norm(y, "nuc")),
    "none": (lf.prox_none, lambda y: 0.0),
}


@pytest.mark.parametrize("name", PROXES)
def test_proximal_operators_minimise(name):
    prox, penalty = PROXES[name]
    generator = np.random.default_rng(3)
    for _ in range(5):
        x = generator.standard_normal((3, 4))
        p = prox(x)
        best = 0.5 * np.sum((p - x) ** 2) + penalty(p)
        for size in (1e-4, 1e-2, 1.0):
            for step in size * generator.standard_normal((40, 3, 4)):
                for y in (p + step, p + step * (p != 0), (1 + step[0, 0]) * p, x + step):
                    assert best <= 0.5 * np.sum((y - x) ** 2) + penalty(y) + 1e-12


def test_isotonic_is_that_of_scikit_learn():
    generator = np.random.default_rng(4)
    for n in (1, 2, 50, 400):
        y, weight = generator.standard_normal(n) + 0.01 * np.arange(n), generator.random(n) + 0.1
        np.testing.assert_allclose(lf.isotonic(y, weight), isotonic_regression(y, sample_weight=weight), rtol=1e-10, atol=1e-10)
        rows = torch.func.vmap(lf.isotonic)(torch.tensor(np.stack([y, -y])))  # traced: the min-max formula
        np.testing.assert_allclose(rows[1], isotonic_regression(-y), rtol=1e-10, atol=1e-10)


def test_entropic_transport_tends_to_the_best_assignment():
    cost = np.random.default_rng(5).random((12, 12))
    plan = lf.optimal_transport(cost, np.ones(12), np.ones(12), 2e-3)
    np.testing.assert_allclose(plan.sum(0), 1, rtol=1e-10)
    np.testing.assert_allclose(plan.sum(1), 1, rtol=1e-10)
    i, j = linear_sum_assignment(cost)
    assert np.sum(plan * cost) == pytest.approx(cost[i, j].sum(), abs=1e-2)
    assert np.isnan(lf.optimal_transport(cost, np.ones(12), 2 * np.ones(12), 0.1)).all()
    assert np.isnan(lf.project_transport(cost, np.ones(12), 2 * np.ones(12))).all()


@pytest.mark.parametrize("penalty", ["pseudo-huber", "huber", "welsch", "truncated-quadratic"])
def test_pooling_finds_the_global_minimum(penalty):
    from layercompiler import arrays
    from layercompiler.functions.pooling import _PENALTIES

    generator = np.random.default_rng(6)
    x = np.where(generator.random((40, 25)) < 0.3, 8 * generator.standard_normal((40, 25)), 0.5 * generator.standard_normal((40, 25)))
    value, xp = _PENALTIES[penalty][0], arrays.get("numpy")
    grid = np.linspace(-6, 6, 4001)
    on_grid = value(xp, grid[:, None, None] - x, 1.0).sum(-1)
    found = value(xp, lf.robust_pool(x, penalty)[:, None] - x, 1.0).sum(-1)
    assert np.all(found <= on_grid.min(0) + 1e-9)


def test_least_squares_is_that_of_numpy():
    generator = np.random.default_rng(7)
    X, y, v = generator.standard_normal((30, 5)) * 10.0 ** np.arange(-2, 3), generator.standard_normal(30), generator.random(30)
    want = np.linalg.lstsq(np.sqrt(v)[:, None] * X, np.sqrt(v) * y, rcond=None)[0]
    np.testing.assert_allclose(lf.least_squares(X, y, v), want, rtol=1e-9)


def test_linear_equality_is_in_the_gradient():
    """min |y - x|^2 / 2 with sum(y) = 1: the cotangent v becomes v - mean(v), where a peer returns v."""
    x, v = torch.randn(2, 4, dtype=torch.float64, requires_grad=True), torch.randn(2, 4, dtype=torch.float64)
    want = v - v.mean(-1, keepdim=True)
    for y in (
        lf.project_hyperplane(x, torch.ones(4, dtype=torch.float64), 1.0),
        lf.project_affine(x, torch.ones(1, 4, dtype=torch.float64), torch.ones(1, dtype=torch.float64)),
        lf.project_polyhedron(x, torch.ones(1, 4, dtype=torch.float64), torch.ones(1, dtype=torch.float64)),
    ):
        torch.testing.assert_close(torch.autograd.grad(y, x, v)[0], want, rtol=1e-12, atol=1e-12)


def test_eigenvectors_are_those_of_numpy_and_repeated_ones_stay_finite():
    M = np.random.default_rng(8).standard_normal((6, 6))
    M = M + M.T
    values, vectors = lf.eigen(M, 3)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(M)[::-1][:3], rtol=1e-12)
    np.testing.assert_allclose(M @ vectors, vectors * values, atol=1e-12)
    # A function of eigenvectors, with derivative by differences of a function that fixes their signs.
    target = np.random.default_rng(9).standard_normal((6, 3))
    f = lambda X: ((lf.eigen(X, 3)[1] * torch.tensor(target)).sum(0) ** 2).sum()  # noqa: E731
    assert torch.autograd.gradcheck(f, torch.tensor(M, requires_grad=True), rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradgradcheck(f, torch.tensor(M, requires_grad=True), rtol=1e-6, atol=1e-8)
    # Two pairs of equal eigenvalues: sums of the equal ones and projectors onto their eigenvectors have derivatives.
    Q = torch.linalg.qr(torch.tensor(M[:4, :4]))[0]
    X = ((Q * torch.tensor([2.0, 2, 1, 1])) @ Q.T).requires_grad_()
    for g in (lambda X: lf.eigen(X)[0][:2].sum(), lambda X: lf.eigen(X, 2)[1] @ lf.eigen(X, 2)[1].mT):
        slow = torch.func.jacrev(g)(X)
        step = torch.tensor(target[:4, :3] @ target[:4, :3].T)
        step = step + step.T
        change = (g(X + 1e-5 * step) - g(X - 1e-5 * step)) / 2e-5
        torch.testing.assert_close((slow * step).sum((-2, -1)), change, rtol=1e-7, atol=1e-7)
    assert torch.func.jacrev(lambda X: lf.eigen(X)[1])(torch.eye(4, dtype=torch.float64)).isfinite().all()


def test_degenerate_points_give_finite_derivatives():
    one, zero = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    stacked = torch.tensor([[1.0, 2, 3, 4], [2, 4, 6, 8]], dtype=torch.float64)  # redundant rows
    calls = {
        "simplex of equals": (lf.project_simplex, zero),
        "simplex of radius 0": (lambda x: lf.project_simplex(x, 0.0), one),
        "huge entries": (lf.project_simplex, 1e15 * one),
        "l1 ball at 0": (lf.project_l1_ball, zero),
        "l1 ball of radius 0": (lambda x: lf.project_l1_ball(x, 0.0), one),
        "l2 ball at 0": (lf.project_l2_ball, zero),
        "l2 ball of radius 0": (lambda x: lf.project_l2_ball(x, 0.0), one),
        "l2 sphere at 0": (lf.project_l2_sphere, zero),
        "linf sphere at 0": (lf.project_linf_sphere, zero),
        "huge l2": (lf.project_l2_ball, 1e200 * one),
        "box of one point": (lambda x: lf.project_box(x, 0.5, 0.5), one),
        "cone at its tip": (lf.project_second_order, zero),
        "group at 0": (lf.prox_group_lasso, zero),
        "nuclear at 0": (lambda x: lf.prox_nuclear(x.reshape(2, 2)), zero),
        "psd at 0": (lambda x: lf.project_psd(x.reshape(2, 2)), zero),
        "psd of equals": (lambda x: lf.project_psd(torch.diag(x)), one),
        "redundant rows": (lambda x: lf.project_affine(x, stacked, torch.tensor([1.0, 2.0], dtype=torch.float64)), one),
        "section with no freedom": (lambda x: lf.project_box_section(x, 0.0, 1.0, 1.0, 4.0), zero),
        "isotonic of equals": (lf.isotonic, one),
        "birkhoff of equals": (lambda x: lf.project_birkhoff(x.reshape(2, 2)), one),
        "birkhoff of a permutation": (lambda x: lf.project_birkhoff(10 * torch.diag(x)), one),
        "pool of equals": (lambda x: lf.robust_pool(x, "welsch"), one),
        "pool of outliers": (lambda x: lf.robust_pool(x * torch.tensor([0, 100, 200, 300.0]), "truncated-quadratic"), one),
    }
    for name, (f, x) in calls.items():
        value, jacobian = f(x), torch.func.jacrev(f)(x)
        assert value.isfinite().all() and jacobian.isfinite().all(), name
        assert np.linalg.norm(jacobian.reshape(-1, 4).numpy(), 2) <= 301, name
    redundant = lf.project_affine(one, stacked, torch.tensor([1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(stacked @ redundant, torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_empty_sets_are_nan_never_a_number():
    x = np.ones(3)
    for out in (
        lf.project_simplex(x, -1.0),
        lf.project_l1_ball(x, -1.0),
        lf.project_l2_ball(x, -1.0),
        lf.project_linf_ball(x, -1.0),
        lf.project_box(x, 1.0, 0.0),
        lf.project_box_section(x, 0.0, 1.0, 1.0, 4.0),
        lf.project_box_section(x, 0.0, 1.0, 1.0, -0.5),
    ):
        assert np.isnan(out).all()
    with pytest.raises(SolveError, match="infeasible"):
        lf.project_polyhedron(x, G=np.array([[1.0, 0, 0], [-1, 0, 0]]), h=np.array([-1.0, -1]))


def test_refusals():
    with pytest.raises(OptionError, match="penalty"):
        lf.robust_pool(np.ones(3), "cauchy")
    with pytest.raises(OptionError, match="number of eigenvalues"):
        lf.eigen(np.eye(3), 4)
    with pytest.raises(ShapeError, match="square"):
        lf.project_psd(np.ones((2, 3)))
    with pytest.raises(ShapeError, match="marginals"):
        lf.optimal_transport(np.ones((2, 3)), np.ones(3), np.ones(2))
    with pytest.raises(ShapeError, match="together"):
        lf.project_polyhedron(np.ones(2), A=np.ones((1, 2)))
    with pytest.raises(DtypeError, match="floating"):
        lf.project_simplex(torch.ones(3, dtype=torch.int64))


def test_numbers_lists_and_arrays_stand_beside_tensors():
    assert lf.project_simplex([1, 2, 3]).tolist() == [0, 0, 1]
    got = lf.project_box(torch.tensor([2.0, -3.0]), [-1, -1], np.array([1.0, 1.0]))
    assert got.dtype == torch.float32 and got.tolist() == [1.0, -1.0]


def test_projections_agree_with_a_general_solver():
    x = np.random.default_rng(11).standard_normal(5)
    found = minimize(
        lambda y: np.sum((y - x) ** 2),
        np.full(5, 0.2),
        bounds=[(0, 0.5)] * 5,
        constraints={"type": "eq", "fun": lambda y: y.sum() - 1},
        tol=1e-14,
    ).x
    np.testing.assert_allclose(lf.project_box_section(x, 0.0, 0.5, 1.0, 1.0), found, atol=1e-6)
