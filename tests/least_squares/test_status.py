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


def test_a_closed_over_gradient_raises():
    hidden = torch.ones(3, requires_grad=True)
    problem = lc.LeastSquares({"x": lc.Euclidean(3)}, [lc.factor(lambda x: x - hidden, on="x")])
    with pytest.raises(UnsupportedTransformError, match="closes over"):
        lc.export(problem, "torch")()


def test_second_derivatives():
    rng = np.random.default_rng(0)
    problem = curve_fit(weight=lc.Diagonal("w"), robust=lc.Cauchy(1.0))
    problem = lc.LeastSquares(problem.variables, problem.factors, {"y": (100,), "w": (100,)})
    layer = lc.export(problem, "torch")
    y = torch.tensor(curves(2, 0.5), requires_grad=True)
    w = torch.tensor(rng.uniform(0.5, 1.5, 100), requires_grad=True)
    c, d, e = (torch.tensor(rng.standard_normal(s)) for s in ((2, 3), (2, 100), 100))

    def slope(y, w, create_graph):
        gy, gw = torch.autograd.grad((layer(y, w)[0] * c).sin().sum(), (y, w), create_graph=create_graph)
        return (gy * d).sum() + (gw * e).sum()

    first = slope(y, w, False)
    second = slope(y, w, True)
    assert abs(first - second) < 1e-9 * abs(first)
    found = torch.autograd.grad(second, (y, w))
    for k, x in enumerate((y, w)):
        v = torch.tensor(rng.standard_normal(x.shape))

        def along(h, k=k, v=v):
            moved = [(a + h * v if i == k else a).detach().requires_grad_() for i, a in enumerate((y, w))]
            return float(slope(*moved, False))

        coarse, fine = ((along(h) - along(-h)) / (2 * h) for h in (2e-4, 1e-4))
        want = (4 * fine - coarse) / 3
        assert abs(float((found[k] * v).sum()) - want) < 1e-6 * abs(want)


def test_the_fused_adjoint_is_the_rule():
    problem, measured, start = pose_graph("SE2", 7, 2, 0.5, robust=lc.Cauchy("r"))
    layer = lc.export(problem, "torch")
    Z = torch.tensor(measured, requires_grad=True)
    w = torch.ones(measured.shape[1], 3, requires_grad=True)
    r = torch.tensor([3.0, 2.5], requires_grad=True)
    (X,) = layer(Z, w, r, init={"X": start})
    g = torch.tensor(np.random.default_rng(0).standard_normal(X.shape))
    fused = torch.autograd.grad(X, (Z, w, r), g, retain_graph=True)
    rule = torch.autograd.grad(X, (Z, w, r), g, create_graph=True)
    for a, b in zip(fused, rule, strict=True):
        assert (a - b).abs().max() < 1e-10 * b.abs().max()


def test_numpy_arrays_go_in_and_out():
    y = curves(3, 0.3)
    torch_layer, numpy_layer = lc.export(curve_fit(), "torch"), lc.export(curve_fit(), "numpy")
    np.testing.assert_array_equal(numpy_layer(y)[0], torch_layer(torch.tensor(y))[0])
    solution = numpy_layer.solve(y=y)
    assert isinstance(solution.values["x"], np.ndarray) and solution.info.ok.all()
    written = lc.LeastSquares({"x": lc.Euclidean(3)}, [lc.factor(lambda x, y: torch.exp(x) - y, on="x", data="y")], {"y": (3,)})
    np.testing.assert_allclose(lc.export(written, "numpy")(np.array([1.0, 2.0, 3.0]))[0], np.log([1.0, 2.0, 3.0]), atol=1e-10)


def test_callbacks_history_and_the_best_iterate():
    import io

    layer = lc.export(curve_fit(), "torch", solver="gauss_newton", on_error="flag")
    y, stream, best, seen = torch.tensor(curves(5, 0.3)), io.StringIO(), lc.inspect.Best(), []

    def keep(step, cost, gradient, values):
        seen.append(cost)
        best(step, cost, gradient, values)

    solution = layer.solve(y, callback=lc.inspect.Progress(total=30, stream=stream, every=0.0, then=keep))
    assert stream.getvalue().count("\r") == len(seen) and "/5 converged" in stream.getvalue()
    assert (best.cost == np.min(seen, axis=0)).all() and best.values.shape == (5, 3)
    np.testing.assert_array_equal(solution.info.history[1:], np.stack(seen)[: len(solution.info.history) - 1])
    (plain,) = layer(y)
    np.testing.assert_allclose(solution.outputs[0], plain, atol=1e-9)
    stopped = layer.solve(y, callback=lambda step, *rest: step >= 2)
    assert (stopped.info.iterations <= 2).all()


def test_graduated_losses_find_the_inliers_and_have_exact_derivatives():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((30, 2))
    turned = np.stack([0.6 * points[:, 0] - 0.8 * points[:, 1], 0.8 * points[:, 0] + 0.6 * points[:, 1]], 1) + 0.01 * rng.standard_normal(
        (30, 2)
    )
    turned[:12] += 4.0  # so many agree on a false place
    found = {}
    for graduated in (False, True):
        problem = lc.LeastSquares(
            {"T": lc.SE2()},
            [lc.factor(lambda xp, T, p, q: T.act(p) - q, on="T", data=("p", "q"), index=np.zeros(30, int),
                       robust=lc.GemanMcClure("r", graduated=graduated, start=2.0**16))],
            {"p": (30, 2), "q": (30, 2), "r": ()},
        )  # fmt: skip
        problem = lc.LeastSquares({"T": lc.SE2(1)}, problem.factors, problem.parameters)
        layer = lc.export(problem, "torch", on_error="flag")
        q, r = torch.tensor(turned, requires_grad=True), torch.tensor(0.1, requires_grad=True)
        found[graduated] = layer.solve(torch.tensor(points), q, r, init={"T": [[0.6, 0.8, 4.0, 4.0]]})
    T = found[True].outputs[0][0]
    assert found[True].info.ok.all() and (T - torch.tensor([0.6, 0.8, 0.0, 0.0])).abs().max() < 0.02
    assert found[False].info.ok.all() and float(found[True].value) < 0.8 * float(found[False].value)
    c = torch.tensor([1.0, -2.0, 0.5, 3.0])
    (gq, gr) = torch.autograd.grad((T * c).sum(), (q, r))

    def along(h, v):
        with torch.no_grad():
            return float((layer(torch.tensor(points), q + h * v, r, init={"T": found[True].outputs[0]})[0] * c).sum())

    v = torch.tensor(rng.standard_normal((30, 2)))
    coarse, fine = ((along(h, v) - along(-h, v)) / (2 * h) for h in (2e-4, 1e-4))
    want = (4 * fine - coarse) / 3
    assert abs(float((gq * v).sum()) - want) < 1e-6 * abs(want) and torch.isfinite(gr)


def test_full_weights_learn():
    rng = np.random.default_rng(0)
    problem = lc.LeastSquares(
        {"x": lc.Euclidean(2, init=[1.0, 0.5])},
        [lc.factor(lambda xp, x, z: xp.stack([x[0] * xp.exp(x[1]), x[0] - x[1], x[1] ** 2]) - z, on="x", data="z", weight=lc.Full("W"))],
        {"z": (3,), "W": (3, 3)},
    )
    layer = lc.export(problem, "torch")
    z, W = torch.tensor(rng.standard_normal(3) + 1), torch.tensor(np.eye(3) + 0.3 * rng.standard_normal((3, 3)), requires_grad=True)
    c = torch.tensor([1.0, -2.0])
    (g,) = torch.autograd.grad((layer(z, W)[0] * c).sum(), W)
    v = torch.tensor(rng.standard_normal((3, 3)))

    def along(h):
        with torch.no_grad():
            return float((layer(z, W + h * v)[0] * c).sum())

    coarse, fine = ((along(h) - along(-h)) / (2 * h) for h in (2e-4, 1e-4))
    want = (4 * fine - coarse) / 3
    assert abs(float((g * v).sum()) - want) < 1e-6 * abs(want)


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
