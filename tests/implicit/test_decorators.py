"""External solvers with derivatives, and the silent defects of peers: each is exact here, or an error."""

import jax
import numpy as np
import pytest
import scipy.optimize
import torch

import layercompiler as lc
from layercompiler import arrays
from tests.derivatives.implicit.maps import FRAMEWORKS

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((20, 4)), RNG.standard_normal(20)
M = X.T @ X + 3.0 * np.eye(4)
EXACT = -np.linalg.solve(M, np.linalg.solve(M, X.T @ Y))  # d ridge / d l2reg


def gradient(xp, w, l2reg, X, y):
    return xp.matmul(xp.matrix_transpose(X), xp.matmul(X, w[:, None]) - y[:, None])[:, 0] + l2reg * w


def ridge(xp, **options):
    @lc.custom_root(gradient, **options)
    def solver(init, l2reg, X, y):
        A = xp.matmul(xp.matrix_transpose(X), X) + l2reg * xp.eye_like(X, 4)
        return xp.linalg.solve(A, xp.matmul(xp.matrix_transpose(X), y[:, None])[:, 0])

    return solver


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_external_solver_and_the_products_themselves(framework):
    xp = arrays.get(framework)
    l2reg, A, b = (xp.new(v) for v in (3.0, X, Y))
    solver, ones, n = ridge(xp), xp.new(np.ones(4)), xp.numpy
    reverse = xp.grad(lambda l2reg: xp.sum(solver(None, l2reg, A, b)))(l2reg)
    assert n(reverse) == pytest.approx(EXACT.sum(), rel=1e-12)
    np.testing.assert_allclose(n(xp.jvp(lambda l2reg: solver(None, y=b, l2reg=l2reg, X=A), (l2reg,), (xp.new(1.0),))[1]), EXACT, rtol=1e-12)
    sol = solver(None, l2reg, A, b)
    products = lc.root_vjp(gradient, sol, (l2reg, A, b), ones)
    assert n(products[0]) == pytest.approx(EXACT.sum(), rel=1e-12) and tuple(products[1].shape) == X.shape
    zeros = (xp.zeros_like(A), xp.zeros_like(b))
    np.testing.assert_allclose(n(lc.root_jvp(gradient, sol, (l2reg, A, b), (xp.new(1.0), *zeros))), EXACT, rtol=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_host_solver_under_transformations(framework):
    xp = arrays.get(framework)

    @lc.custom_root(lambda xp, y, t: y**3 + t * y - 1, host=True)
    def solver(init, t):
        return scipy.optimize.root(lambda y: y**3 + t * y - 1, init, tol=1e-13).x

    t = np.array([1.0, 2.0])
    y = np.array([np.roots([1, 0, v, -1]).real[np.isreal(np.roots([1, 0, v, -1]))][0] for v in t])
    want = -y / (3 * y**2 + t)
    got = xp.grad(lambda t: xp.sum(solver(xp.new(np.ones(2)), t)))(xp.new(t))
    np.testing.assert_allclose(xp.numpy(got), want, rtol=1e-10)
    rows = xp.vmap(xp.grad(lambda t: xp.sum(solver(xp.new(np.ones(1)), t))))(xp.new(t[:, None]))
    np.testing.assert_allclose(xp.numpy(rows)[:, 0], want, rtol=1e-10)


def test_default_gradients_are_accurate():
    """Ridge, per-feature logistic regression: relative error 1e-9 and below where peers' defaults give 2e-5."""
    rng = np.random.default_rng(0)
    n, p = 500, 100
    A = torch.tensor(3 * rng.standard_normal((n, p)) / np.sqrt(p))
    y = torch.sign(A @ torch.tensor(rng.standard_normal(p)))
    theta, c = torch.full((p,), -1.0, dtype=torch.float64), torch.tensor(rng.standard_normal(p))

    def F(w, theta):
        return -A.T @ (y * torch.sigmoid(-y * (A @ w))) + theta.exp() * w

    def hessian(w):
        s = torch.sigmoid(-y * (A @ w))
        return (A.T * (s * (1 - s))) @ A + torch.diag(theta.exp())

    @lc.custom_root(F)
    def solver(init, theta):
        w = torch.zeros(p, dtype=torch.float64)
        for _ in range(30):
            w = w - torch.linalg.solve(hessian(w), F(w, theta))
        return w

    w = solver(None, theta)
    want = -theta.exp() * w * torch.linalg.solve(hessian(w), c)
    got = torch.func.grad(lambda t: solver(None, t) @ c)(theta)
    assert float((got - want).norm() / want.norm()) < 1e-10


def test_default_gradients_of_a_multiclass_svm():
    """Dual of a multiclass SVM over simplices by projected gradient: the hyper-gradient equals that of the active set, solved densely."""
    rng = np.random.default_rng(1)
    m, p, k = 12, 6, 3
    A = rng.standard_normal((m, p))
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    onehot = np.eye(k)[rng.integers(0, k, m)]
    At, Yt = torch.tensor(A), torch.tensor(onehot)

    def simplex(v):
        u = torch.sort(v, dim=-1, descending=True).values
        s = torch.cumsum(u, -1) - 1
        rho = (u - s / torch.arange(1, k + 1) > 0).sum(-1, keepdim=True)
        return torch.clamp(v - torch.gather(s, -1, rho - 1) / rho, min=0)

    def f(b, t):
        W = At.T @ (Yt - b) / t.exp()
        return 0.5 * t.exp() * (W * W).sum() + (b * (1 - Yt)).sum() * 0 + (b * (Yt - 1)).sum()

    problem = lc.Argmin(f, projection=lambda v, t: simplex(v), init=np.full((m, k), 1 / k), tolerance=1e-8)
    layer = lc.export(problem, "torch")
    t = torch.tensor(0.3, dtype=torch.float64)
    c = torch.tensor(rng.standard_normal((m, k)))
    b = layer(t)
    P, lam = np.eye(m * k), b.numpy().ravel() > 1e-9
    rows = [np.where(np.arange(m * k) // k == i, 1.0, 0.0) for i in range(m)]
    Hess = torch.func.hessian(lambda v: f(v.reshape(m, k), t))(b.reshape(-1)).numpy()
    mixed = torch.func.jacfwd(lambda s: torch.func.grad(f)(b, s))(t).numpy().ravel()
    E = np.concatenate([np.array(rows)[:, lam], np.zeros((m, 0))], axis=1)
    K = np.block([[Hess[np.ix_(lam, lam)], E.T], [E, np.zeros((m, m))]])
    step = np.linalg.lstsq(K, np.concatenate([-mixed[lam], np.zeros(m)]), rcond=None)[0][: lam.sum()]
    want = c.numpy().ravel()[lam] @ step
    del P
    got = torch.func.grad(lambda s: (layer(s) * c).sum())(t)
    assert float(got) == pytest.approx(want, rel=1e-9, abs=1e-11)


def test_hessians_are_right():
    """A peer's Hessian through a ridge root is 0.667 of the truth."""
    solver = ridge(arrays.get("torch"))
    A, b = torch.tensor(X), torch.tensor(Y)
    f = lambda v: (solver(None, v, A, b) ** 2).sum()  # noqa: E731
    direct = lambda v: (torch.linalg.solve(A.T @ A + v * torch.eye(4, dtype=torch.float64), A.T @ b) ** 2).sum()  # noqa: E731
    t = torch.tensor(3.0, dtype=torch.float64)
    assert float(torch.func.hessian(f)(t)) == pytest.approx(float(torch.func.hessian(direct)(t)), rel=1e-10)
    s = t.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(s), s, create_graph=True)
    (h,) = torch.autograd.grad(g, s)
    assert float(h) == pytest.approx(float(torch.func.hessian(direct)(t)), rel=1e-10)


def test_argnums_may_skip_arguments():
    solver = ridge(arrays.get("torch"), argnums=3)
    args = [torch.tensor(v, requires_grad=True) for v in (3.0, X, Y)]
    solver(None, *args).sum().backward()
    assert args[0].grad is None and args[1].grad is None
    np.testing.assert_allclose(args[2].grad.numpy(), X @ np.linalg.solve(M, np.ones(4)), rtol=1e-10)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_cotangent_of_a_solvers_auxiliary_output_is_never_dropped(framework):
    """A peer returns a gradient of zero. Here the solution's part is exact, and the unknown part raises."""
    xp = arrays.get(framework)

    @lc.custom_root(lambda xp, y, t: y**3 + t * y - 1, has_aux=True)
    def solver(init, t):
        y = t * 0 + 0.5
        for _ in range(40):
            y = y - (y**3 + t * y - 1) / (3 * y * y + t)
        return y, 2 * y

    t = xp.new(np.array([1.0, 2.0]))
    y = xp.numpy(solver(None, t)[0])
    np.testing.assert_allclose(xp.numpy(xp.grad(lambda t: xp.sum(solver(None, t)[0]))(t)), -y / (3 * y**2 + xp.numpy(t)), rtol=1e-10)
    with pytest.raises(lc.errors.UnsupportedTransformError, match="auxiliary"):
        xp.grad(lambda t: xp.sum(solver(None, t)[1]))(t)
    if framework == "jax":
        with pytest.raises(lc.errors.UnsupportedTransformError, match="auxiliary"):
            jax.jit(jax.grad(lambda t: solver(None, t)[1].sum()))(t)
        total = jax.grad(lambda t: jax.lax.scan(lambda c, _: (c + solver(None, t)[0].sum(), None), 0.0, None, length=2)[0])(t)
        np.testing.assert_allclose(total, -2 * y / (3 * y**2 + np.asarray(t)), rtol=1e-10)  # unused in a loop, too
        assert np.isnan(jax.jvp(lambda t: solver(None, t)[1], (t,), (t,))[1]).all()


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_closures_are_differentiated(framework):
    """s is captured, not passed: peers lose it, or crash."""
    xp = arrays.get(framework)
    t = xp.new(np.array([1.0, 2.0]))

    def f(s):
        @lc.custom_root(lambda xp, y, t: y**3 + s * t * y - 1)
        def solver(init, t):
            y, fixed = t * 0 + 0.5, xp.stop_gradient(s)
            for _ in range(40):
                y = y - (y**3 + fixed * t * y - 1) / (3 * y * y + fixed * t)
            return y

        return solver(None, t)

    y, tn = xp.numpy(f(xp.new(1.0))), np.array([1.0, 2.0])
    want = -tn * y / (3 * y**2 + tn)
    one = xp.new(1.0)
    np.testing.assert_allclose(xp.numpy(xp.jvp(f, (one,), (one,))[1]), want, rtol=1e-10)
    np.testing.assert_allclose(xp.numpy(xp.grad(lambda s: xp.sum(f(s)))(one)), want.sum(), rtol=1e-10)


def test_a_captured_tensor_in_tensorflow_is_refused_and_a_variable_differentiated():
    import tensorflow as tf

    t, s = tf.constant([1.0, 2.0], tf.float64), tf.constant(1.0, tf.float64)
    v = tf.Variable(1.0, dtype=tf.float64)

    def solve(scale):
        @lc.custom_root(lambda y, t: y**3 + scale * t * y - 1)
        def solver(init, t):
            y, fixed = t * 0 + 0.5, tf.stop_gradient(scale)
            for _ in range(40):
                y = y - (y**3 + fixed * t * y - 1) / (3 * y * y + fixed * t)
            return y

        return solver(None, t)

    with tf.GradientTape() as tape:
        tape.watch(s)
        with pytest.raises(lc.errors.UnsupportedTransformError, match="captures"):
            solve(s)
    with tf.GradientTape() as tape:
        y = solve(v)
    got, y, tn = tape.gradient(y, v), y.numpy(), t.numpy()
    assert float(got) == pytest.approx(float(np.sum(-tn * y / (3 * y**2 + tn))), rel=1e-10)


def test_a_point_that_is_no_root_does_not_pass_unnoticed():
    """A peer returns its gradient without complaint."""
    t = torch.tensor([1.0], dtype=torch.float64)
    make = lambda **o: lc.custom_root(lambda y, t: y**3 + t * y - 1, **o)(lambda init, t: t * 0 + 0.5)  # noqa: E731
    with pytest.warns(RuntimeWarning, match="not a root"):
        make()(None, t)
    with pytest.raises(lc.errors.SolveError, match="not a root"):
        make(on_error="raise")(None, t)
    assert torch.isnan(make(on_error="flag")(None, t)).all()


def test_a_singular_jacobian_raises():
    t = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
    solver = lc.custom_root(lambda y, t: torch.stack([y[0] + y[1] - t[0], y[0] + y[1] - t[1]]))(lambda init, t: t * 0)
    with pytest.raises(lc.errors.DerivativeError, match="singular"):
        solver(None, t)[0].backward()


def test_tiny_and_huge_cotangents():
    """Cotangents are scaled before anything iterates: a preconditioned CG elsewhere returns NaN for small ones."""
    n = 100
    rng = np.random.default_rng(3)
    S = torch.tensor((lambda Q: Q @ Q.T / n + np.eye(n))(rng.standard_normal((n, n))))
    for linear in (lc.linear.CG(preconditioner=lambda y, t: lambda v: v / S.diagonal()), lc.linear.BiCGSTAB(), lc.linear.GMRES()):
        solver = lc.custom_root(lambda y, t: S @ y - t, solve=linear)(lambda init, t: torch.linalg.solve(S, t))
        t = torch.tensor(rng.standard_normal(n), requires_grad=True)
        for scale in (1e-200, 1.0, 1e150):
            (g,) = torch.autograd.grad(solver(None, t), t, scale * torch.ones(n, dtype=torch.float64))
            want = scale * torch.linalg.solve(S, torch.ones(n, dtype=torch.float64))
            assert float(((g - want) / scale).norm()) < 1e-8


def test_a_preconditioner_is_transposed_for_the_adjoint():
    n = 120
    rng = np.random.default_rng(4)
    upper = np.triu(rng.standard_normal((n, n)), 1) + np.diag(np.linspace(1, 50, n))
    J = torch.tensor(upper + 1e-3 * rng.standard_normal((n, n)))
    U = torch.tensor(upper)
    counted = []

    def F(y, t):
        counted.append(1)
        return J @ y - t

    M = lambda y, t: lambda v: torch.linalg.solve_triangular(U, v[:, None], upper=True)[:, 0]  # noqa: E731
    solver = lc.custom_root(F, solve=lc.linear.BiCGSTAB(preconditioner=M, maxiter=12))(lambda init, t: torch.linalg.solve(J, t))
    t = torch.tensor(rng.standard_normal(n), requires_grad=True)
    c = torch.tensor(rng.standard_normal(n))
    (g,) = torch.autograd.grad(solver(None, t), t, c)
    torch.testing.assert_close(g, torch.linalg.solve(J.T, c), rtol=1e-8, atol=1e-10)
    assert len(counted) <= 4  # F is evaluated a few times, not once per iteration
