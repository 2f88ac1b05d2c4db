"""The status is decided by the gradient: no point with a large gradient is called converged, and no bad instance harms the others."""

import numpy as np
import pytest
import torch

import layercompiler as lc
from layercompiler import Status
from layercompiler.errors import BuildError, DerivativeError, NonFiniteInputError, SolveError, UnsupportedTransformError
from tests.least_squares.problems import TIMES, curve_fit, curves, pose_graph


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def gradient(x, y):
    """Gradient of the curve fit's objective and the largest cosine between the residual and a column, by hand."""
    e = np.exp(-x[:, 1:2] * TIMES)
    r = x[:, :1] * e + x[:, 2:] - y
    J = np.stack([e, -x[:, :1] * TIMES * e, np.ones_like(e)], axis=2)
    g = np.einsum("bmi,bm->bi", J, r)
    return g, np.abs(g / np.sqrt((J**2).sum(1))).max(1) / np.sqrt((r**2).sum(1))


@pytest.mark.parametrize("method", ["levenberg_marquardt", "dogleg"])
def test_curve_fits_on_which_a_peer_reports_the_start_as_converged(method):
    y = curves(64, 0.05)
    solution = lc.export(curve_fit(), "torch", solver=method).solve(torch.tensor(y))
    x = solution.outputs[0].numpy()
    g, cosine = gradient(x, y)
    assert (solution.status == Status.CONVERGED).all() and np.abs(g).max() < 1e-6 and cosine.max() < 1e-8
    assert (x != [1.0, 1.0, 0.0]).any(axis=1).all()


def random_problem(xp, x, A, b, c):
    """Residuals with singular Jacobians, indefinite Hessians and flat ends."""
    return xp.concat([xp.matmul(A, xp.sin(x)) - b, c * (x[:2] * x[1:] - 1.0), x[:1] ** 2 * x[1:2] / (1 + x[2:] ** 2)])


def lies(count, seed):
    rng = np.random.default_rng(seed)
    A, b, c = rng.standard_normal((count, 4, 3)), 2 * rng.standard_normal((count, 4)), rng.choice([0.0, 1.0], size=(count, 2))
    A[::3, :, 1] = A[::3, :, 0]  # singular
    start = rng.standard_normal((count, 3)) * rng.choice([1.0, 30.0], size=(count, 1))  # far
    problem = lc.LeastSquares(
        {"x": lc.Euclidean(3)}, [lc.factor(random_problem, on="x", data=("A", "b", "c"))], {"A": (4, 3), "b": (4,), "c": (2,)}
    )
    theta = [torch.tensor(t) for t in (A, b, c)]
    found = []
    for method in ("levenberg_marquardt", "dogleg", "gauss_newton"):
        layer = lc.export(problem, "torch", solver=method, options={"max_iterations": 50}, on_error="flag")
        solution = layer.solve(*theta, init={"x": start})
        x = torch.nan_to_num(solution.outputs[0])

        def residual(x, A, b, c):
            return torch.cat([A @ x.sin() - b, c * (x[:2] * x[1:] - 1), x[:1] ** 2 * x[1:2] / (1 + x[2:] ** 2)])

        r, J = torch.func.vmap(residual)(x, *theta), torch.func.vmap(torch.func.jacrev(residual))(x, *theta)
        lengths = (J * J).sum(1).sqrt()
        noise = 1e-5 * ((lengths * x) ** 2).sum(1).sqrt()  # what cancels in the residual
        cosine = ((r[:, :, None] * J).sum(1).abs() / lengths.clamp(min=1e-300)).amax(1) / (r.norm(dim=1) + noise + 1e-300)
        called = torch.from_numpy(solution.status == Status.CONVERGED)
        found.append((int(called.sum()), int((called & ~(cosine < 1.1e-8)).sum())))
        assert np.isin(solution.status, [Status.CONVERGED, Status.ITERATION_LIMIT, Status.STALLED, Status.FAILED]).all()
    return found


def test_no_lies():
    for (converged, wrong), least in zip(lies(60, 0), (45, 45, 15), strict=True):
        assert wrong == 0 and converged > least


@pytest.mark.slow
def test_no_lies_on_a_thousand_problems():
    for (converged, wrong), least in zip(lies(1000, 1), (800, 850, 300), strict=True):  # plain Gauss-Newton fails from far away
        assert wrong == 0 and converged > least


def test_columns_that_were_long_on_the_way_do_not_hide_a_gradient():
    y = torch.tensor(curves(300, 0.3))
    solution = lc.export(curve_fit(), "torch", solver="gauss_newton", on_error="flag").solve(y)
    ok = solution.info.ok
    _, cosine = gradient(solution.outputs[0].numpy()[ok], y.numpy()[ok])
    assert 200 < ok.sum() < 300 and cosine.max() < 1e-8


def test_a_bad_instance_leaves_the_others_alone():
    y = curves(3, 0.1)
    y[1] = np.nan
    with pytest.raises(NonFiniteInputError, match="1"):
        lc.export(curve_fit(), "torch")(torch.tensor(y))
    layer = lc.export(curve_fit(), "torch", on_error="flag")
    inputs = torch.tensor(y, requires_grad=True)
    (x,) = layer(inputs)
    assert torch.isnan(x[1]).all() and torch.isfinite(x[[0, 2]]).all()
    x[[0, 2]].sum().backward()
    assert torch.isfinite(inputs.grad).all() and (inputs.grad[1] == 0).all()
    (alone,) = layer(torch.tensor(y[[0, 2]]))
    np.testing.assert_allclose(x[[0, 2]].detach(), alone.detach(), rtol=1e-10)


def test_the_iteration_limit_raises_and_carries_the_results():
    layer = lc.export(curve_fit(), "torch", options={"max_iterations": 1})
    with pytest.raises(SolveError, match="iteration limit") as caught:
        layer(torch.tensor(curves(2, 0.1)))
    assert caught.value.indices and caught.value.solution.values["x"].shape == (2, 3)


def test_a_free_gauge_has_no_derivative():
    problem, measured, start = pose_graph("SE2", 6, 1, 0.1)
    free = lc.LeastSquares({"X": lc.SE2(6)}, problem.factors, problem.parameters)
    theta = [torch.tensor(measured[0], requires_grad=True), torch.ones(measured.shape[1], 3), torch.tensor(1.0)]
    (X,) = lc.export(free, "torch")(*theta, init={"X": start[0]})
    with pytest.raises(DerivativeError, match="not positive definite"):
        X.sum().backward()
    (X,) = lc.export(free, "torch", on_error="flag")(*theta, init={"X": start[0]})
    assert torch.isnan(X).all()


def test_batches_equal_singles_and_shared_parameters():
    problem, measured, start = pose_graph("SE2", 7, 3, 0.2)
    layer = lc.export(problem, "torch")
    w, r = torch.ones(measured.shape[1], 3, requires_grad=True), torch.tensor(1.0)
    (X,) = layer(torch.tensor(measured), w, r, init={"X": start})
    X.sin().sum().backward()
    whole, total = w.grad.clone(), 0
    for i in range(3):
        v = w.detach().clone().requires_grad_()
        (one,) = layer(torch.tensor(measured[i]), v, r, init={"X": start[i]})
        one.sin().sum().backward()
        total = total + v.grad
        np.testing.assert_allclose(X[i].detach(), one.detach(), atol=1e-10)
    np.testing.assert_allclose(whole, total, atol=1e-9)


def test_a_second_derivative_and_a_closed_over_gradient_raise():
    y = torch.tensor(curves(1, 0.1)[0], requires_grad=True)
    (x,) = lc.export(curve_fit(), "torch")(y)
    (g,) = torch.autograd.grad(x.sum(), y, create_graph=True)
    with pytest.raises(RuntimeError):
        g.sum().backward()
    hidden = torch.ones(3, requires_grad=True)
    problem = lc.LeastSquares({"x": lc.Euclidean(3)}, [lc.factor(lambda x: x - hidden, on="x")])
    with pytest.raises(UnsupportedTransformError, match="closes over"):
        lc.export(problem, "torch")()


def test_bounds_hold_and_have_exact_derivatives():
    problem = lc.LeastSquares(
        {"x": lc.Euclidean(3, lower=0.0, upper=[1.0, 5.0, 5.0])},
        [lc.factor(lambda x, c: torch.cat([x - c, x[:1] * x[1:2] - 1.0]), on="x", data="c")],
        {"c": (3,)},
    )
    layer = lc.export(problem, "torch")
    c = torch.tensor([2.0, 0.5, -1.0], requires_grad=True)
    (x,) = layer(c)
    # x0 at its upper bound 1, x2 at its lower bound 0: x1 minimises (x1 - c1)^2 + (x1 - 1)^2
    np.testing.assert_allclose(x.detach(), [1.0, 0.75, 0.0], atol=1e-9)
    x.sum().backward()
    np.testing.assert_allclose(c.grad, [0.0, 0.5, 0.0], atol=1e-9)


def test_transforms_of_torch_are_refused():
    layer = lc.export(curve_fit(), "torch")
    y = torch.tensor(curves(2, 0.3))
    with pytest.raises(UnsupportedTransformError):
        torch.func.vmap(lambda v: layer(v)[0])(y)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError):
        layer(torch.autograd.forward_ad.make_dual(y, y))


@pytest.mark.parametrize("backward", ["truncated", "unrolled", "dlm"])
def test_other_backward_modes_come_near_the_exact_derivative(backward):
    y = torch.tensor(curves(2, 0.02), requires_grad=True)
    (exact,) = torch.autograd.grad(lc.export(curve_fit(), "torch")(y)[0].sum(), y)
    layer = lc.export(curve_fit(), "torch", options={"backward": backward, "truncation": 4})
    (found,) = torch.autograd.grad(layer(y)[0].sum(), y)
    assert (found - exact).norm() < 1e-4 * exact.norm()
    (rough,) = torch.autograd.grad(lc.export(curve_fit(), "torch", options={"backward": "gauss_newton"})(y)[0].sum(), y)
    assert 1e-6 * exact.norm() < (rough - exact).norm() < 0.2 * exact.norm()


def test_tensorflow_equals_torch():
    import tensorflow as tf

    y = curves(2, 0.5)
    v, u = tf.Variable(y), torch.tensor(y, requires_grad=True)
    with tf.GradientTape() as tape:
        (x,) = lc.export(curve_fit(), "tensorflow")(v)
        total = tf.reduce_sum(x**2)
    (z,) = lc.export(curve_fit(), "torch")(u)
    (z**2).sum().backward()
    np.testing.assert_allclose(x, z.detach(), atol=1e-10)
    np.testing.assert_allclose(tape.gradient(total, v), u.grad, atol=1e-9)


def exponential_jacobian(shift):
    def jacobian(xp, x, y):
        t = xp.new(TIMES, x)
        e = xp.exp(-x[1] * t)
        return (xp.stack([e, -x[0] * t * (e + shift), xp.ones_like(e)], axis=-1),)

    return jacobian


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_right_jacobian_changes_nothing(framework):
    y = curves(3, 0.3)
    import jax

    with jax.enable_x64(True):
        plain = lc.export(curve_fit(), framework).solve(y).outputs[0]
        given = lc.export(curve_fit(jacobian=exponential_jacobian(0.0)), framework).solve(y).outputs[0]
        np.testing.assert_allclose(np.asarray(given), np.asarray(plain), rtol=1e-9)


def test_a_wrong_jacobian_is_refused():
    with pytest.raises(BuildError, match="not the derivative"):
        lc.export(curve_fit(jacobian=exponential_jacobian(1e-3)), "torch", on_error="flag").solve(curves(3, 0.3))
