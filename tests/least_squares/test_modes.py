"""Every backward mode returns the solution with a status that its own gradient bears out, and has the derivative that it is defined by."""

import numpy as np
import pytest
import torch

import layercompiler as lc
from layercompiler import Status
from layercompiler.errors import BuildError, DerivativeError, OptionError, SolveError, StoreError, UnsupportedTransformError
from tests.least_squares.problems import TIMES, curve_fit, curves, pose_graph
from tests.least_squares.test_status import exponential_jacobian, gradient, random_problem

MODES = ("implicit", "gauss_newton", "truncated", "unrolled", "dlm")
STEPS = ("truncated", "unrolled")


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def slope(layer, *theta, **init):
    """(values, gradients of the sum of their sines)."""
    inputs = [torch.as_tensor(t).detach().clone().requires_grad_() for t in theta]
    (x,) = layer(*inputs, **init)
    return x.detach(), torch.autograd.grad(x.sin().sum(), inputs)


@pytest.mark.parametrize("mode", STEPS)
def test_curve_fits_on_which_undamped_steps_run_away(mode):
    y = curves(64, 0.05)
    layer = lc.export(curve_fit(), "torch", options={"backward": mode})
    alone = np.concatenate([layer(torch.tensor(y[i : i + 1], requires_grad=True))[0].detach().numpy() for i in range(64)])
    whole, (found,) = slope(layer, y)
    exact, (expected,) = slope(lc.export(curve_fit(), "torch"), y)
    g, cosine = gradient(alone, y)
    assert np.abs(g).max() < 1e-6 and cosine.max() < 1e-8
    np.testing.assert_allclose(alone, exact, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(whole, exact, rtol=1e-9, atol=1e-10)
    assert ((found - expected).norm(dim=1) < 1e-4 * expected.norm(dim=1)).all()


def by_hand(y, dampings):
    """Gauss-Newton steps with the dampings, in torch alone."""
    t = torch.tensor(TIMES)
    x = torch.tensor([1.0, 1.0, 0.0])

    def residual(x):
        return x[0] * torch.exp(-x[1] * t) + x[2] - y

    for d in dampings:
        J = torch.func.jacfwd(residual)(x)
        x = x - torch.linalg.solve(J.T @ J + torch.diag(d), J.T @ residual(x))
    return x


@pytest.mark.parametrize("method", ["gauss_newton", "levenberg_marquardt"])
def test_unrolled_is_the_derivative_of_the_steps_that_were_taken(method):
    y = torch.tensor(curves(1, 0.2)[0])
    layer = lc.export(curve_fit(), "torch", solver=method, options={"backward": "unrolled"})
    p, record = layer.prepared, []
    p.solve(p.regular((y,), p.start((), None), ()), None, record)
    taken = [torch.tensor(step.scale[0]) for _, step in record if step.accept[0]]
    assert len(taken) > 5
    found, (g,) = slope(layer, y)
    u = y.clone().requires_grad_()
    x = by_hand(u, taken)
    (expected,) = torch.autograd.grad((x * found.cos()).sum(), u)
    np.testing.assert_allclose(x.detach(), found, atol=1e-7)
    assert (g - expected).norm() < 1e-6 * expected.norm()
    _, (exact,) = slope(lc.export(curve_fit(), "torch", solver=method), y)
    assert 1e-10 * exact.norm() < (g - exact).norm() < 1e-2 * exact.norm()  # near it, not it


def test_more_steps_of_truncated_come_nearer_also_where_undamped_ones_lead_away():
    # F(x) = (x^2 + 1)^2 + (x - c)^2: second derivatives outweigh the Gauss-Newton matrix at the solution
    residual = lc.factor(lambda x, c: torch.cat([x**2 + 1, x - c]), on="x", data="c")
    problem = lc.LeastSquares({"x": lc.Euclidean(1, init=[0.1])}, [residual], {"c": (1,)})
    c = torch.tensor([0.2])
    _, (exact,) = slope(lc.export(problem, "torch"), c)
    errors = []
    for k in (1, 4, 16, 64):
        _, (g,) = slope(lc.export(problem, "torch", options={"backward": "truncated", "truncation": k}), c)
        errors.append(float((g - exact).abs() / exact.abs()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-8 < errors[0]


BOXED = lc.LeastSquares(
    {"x": lc.Euclidean(3, lower=0.0, upper=[1.0, 5.0, 5.0])},
    [lc.factor(lambda xp, x, c: xp.concat([x - c, x[:1] * x[1:2] - 1.0]), on="x", data="c")],
    {"c": (3,)},
)


@pytest.mark.parametrize("method", ["levenberg_marquardt", "dogleg"])
@pytest.mark.parametrize("mode", MODES)
def test_bounds_hold_in_every_mode(mode, method):
    layer = lc.export(BOXED, "torch", solver=method, options={"backward": mode})
    c = torch.tensor([2.0, 0.5, -1.0], requires_grad=True)
    (x,) = layer(c)
    np.testing.assert_allclose(x.detach(), [1.0, 0.75, 0.0], atol=1e-9)
    x.sum().backward()
    np.testing.assert_allclose(c.grad, [0.0, 0.5, 0.0], atol=1e-6)


@pytest.mark.parametrize("mode", STEPS)
def test_jax_takes_the_same_steps_within_bounds(mode):
    import jax

    layer = lc.export(BOXED, "jax", options={"backward": mode}, on_error="flag")
    c = np.array([[2.0, 0.5, -1.0], [np.nan, 0.5, -1.0], [0.3, 0.5, 0.4]])
    x, pull = jax.vjp(lambda c: layer(c)[0], c)
    (g,) = pull(jax.numpy.ones_like(x))
    y, _ = slope(lc.export(BOXED, "torch", options={"backward": mode}), c[[0, 2]])
    np.testing.assert_allclose(x[::2], y, atol=1e-9)
    assert np.isnan(x[1]).all() and (g[1] == 0).all()
    u = torch.tensor(c[[0, 2]], requires_grad=True)
    (expected,) = torch.autograd.grad(lc.export(BOXED, "torch", options={"backward": mode})(u)[0].sum(), u)
    np.testing.assert_allclose(g[::2], expected, atol=1e-9)


@pytest.mark.parametrize("mode", MODES[1:])
def test_fixed_elements_of_groups_and_robust_losses(mode):
    problem, measured, start = pose_graph("SE2", 6, 2, 0.05, robust=lc.Cauchy("r"))
    theta = [torch.tensor(measured), torch.ones(measured.shape[1], 3), torch.tensor(2.0)]
    exact, expected = slope(lc.export(problem, "torch"), *theta, init={"X": start})
    layer = lc.export(problem, "torch", options={"backward": mode, "truncation": 8})
    found, gradients = slope(layer, *theta, init={"X": start})
    np.testing.assert_allclose(found, exact, atol=1e-9)
    for a, b in zip(gradients, expected, strict=True):
        assert (a - b).norm() < (0.2 if mode == "gauss_newton" else 1e-4) * b.norm() + 1e-8


@pytest.mark.parametrize("mode", MODES)
def test_a_stationary_point_that_is_no_minimum_is_not_differentiated(mode):
    # a start at x0 = 0 stays there: a maximum along x0 of (x0^2 - 1)^2, with a Gauss-Newton matrix that x0 x1 and the rest make definite
    residual = lc.factor(lambda x, c: torch.cat([x[:1] ** 2 - 1.0, 0.1 * x[:1], x[1:] - c]), on="x", data="c")
    problem = lc.LeastSquares({"x": lc.Euclidean(2)}, [residual], {"c": (1,)})
    c = torch.tensor([0.5], requires_grad=True)
    (x,) = lc.export(problem, "torch", options={"backward": mode})(c)
    with pytest.raises(DerivativeError, match="not positive definite"):
        x.sum().backward()
    (x,) = lc.export(problem, "torch", options={"backward": mode}, on_error="flag")(c)
    assert torch.isnan(x).all()
    (g,) = torch.autograd.grad(x.nansum(), c)
    assert (g == 0).all()


def sweep(count, seed, modes=MODES):
    """By mode: (instances called converged, of these those whose own gradient is large, differentiated ones with a gradient not finite)."""
    rng = np.random.default_rng(seed)
    A, b, c = rng.standard_normal((count, 4, 3)), 2 * rng.standard_normal((count, 4)), rng.choice([0.0, 1.0], size=(count, 2))
    A[::3, :, 1] = A[::3, :, 0]  # singular
    start = rng.standard_normal((count, 3)) * rng.choice([1.0, 30.0], size=(count, 1))  # far
    out = {}
    for mode in modes:
        for kind in ("plain", "bounded", "robust"):
            box = {"lower": -1.0, "upper": [0.5, 2.0, 40.0]} if kind == "bounded" else {}
            loss = {"robust": lc.Cauchy(1.0)} if kind == "robust" else {}
            problem = lc.LeastSquares(
                {"x": lc.Euclidean(3, **box)},
                [lc.factor(random_problem, on="x", data=("A", "b", "c"), **loss)],
                {"A": (4, 3), "b": (4,), "c": (2,)},
            )
            layer = lc.export(problem, "torch", on_error="flag", options={"backward": mode, "max_iterations": 50})
            theta = [torch.tensor(t, requires_grad=True) for t in (A, b, c)]
            solution = layer.solve(*theta, init={"x": start})
            x = solution.outputs[0]
            called = torch.from_numpy(solution.status == Status.CONVERGED)
            assert (torch.isnan(x).any(1) == ~called).all()
            gradients = torch.autograd.grad(x.nansum(), theta)
            finite = all(torch.isfinite(g).all() for g in gradients)
            at, fixed = torch.nan_to_num(x.detach()), [t.detach() for t in theta]

            def residual(x, A, b, c):
                return torch.cat([A @ x.sin() - b, c * (x[:2] * x[1:] - 1), x[:1] ** 2 * x[1:2] / (1 + x[2:] ** 2)])

            r, J = torch.func.vmap(residual)(at, *fixed), torch.func.vmap(torch.func.jacrev(residual))(at, *fixed)
            root = 1 / (1 + (r * r).sum(1)).sqrt() if loss else torch.ones(count)
            r, J = r * root[:, None], J * root[:, None, None]
            g = (r[:, :, None] * J).sum(1)
            if box:
                low, high = torch.tensor(box["lower"]), torch.tensor(box["upper"])
                assert (at >= low).all() and (at <= high).all()
                g = torch.where((at <= low) & (g > 0) | (at >= high) & (g < 0), 0.0, g)
            lengths = (J * J).sum(1).sqrt()
            cosine = (g.abs() / lengths.clamp(min=1e-300)).amax(1)
            cosine = cosine / (r.norm(dim=1) + 1e-5 * ((lengths * at) ** 2).sum(1).sqrt() + 1e-300)
            lies = int((called & ~(cosine < 1.1e-8)).sum())
            out[mode, kind] = int(called.sum()), lies, finite
    return out


@pytest.mark.parametrize("mode", MODES)
def test_no_lies_in_any_mode(mode):
    for (_, kind), (called, lies, finite) in sweep(40, 5, (mode,)).items():
        assert lies == 0 and finite and called > 5, kind


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_no_lies_in_any_mode_on_300_problems(mode):
    for (_, kind), (called, lies, finite) in sweep(300, 6, (mode,)).items():
        assert lies == 0 and finite and called > 100, kind


# What the layers are asked for besides ------------------------------------------------------------------------------------------------

HELD = lc.LeastSquares(
    {"x": lc.Euclidean(2), "a": lc.Euclidean(2, fixed=True)},
    [lc.factor(lambda xp, x, a, z: x - a**2 - z, on=("x", "a"), data="z")],
    {"z": (2,)},
    outputs=["x"],
)


def test_the_start_of_what_is_fixed_is_not_differentiated_in_silence():
    import jax
    import tensorflow as tf

    a, z = np.array([1.0, 2.0]), np.array([0.5, 0.25])
    layer = lc.export(HELD, "torch")
    start = torch.tensor(a, requires_grad=True)
    for call in (layer, layer.solve):
        with pytest.raises(UnsupportedTransformError, match=r"declare what is fixed"):
            call(torch.tensor(z, requires_grad=True), init={"a": start})
    with torch.no_grad():
        np.testing.assert_allclose(layer(torch.tensor(z), init={"a": start})[0], a**2 + z, atol=1e-9)
    layer(torch.tensor(z), init={"x": torch.ones(2, requires_grad=True), "a": start.detach()})  # zero, and rightly so
    with torch.autograd.forward_ad.dual_level(), pytest.raises(UnsupportedTransformError, match="declare what is fixed"):
        layer(torch.tensor(z), init={"a": torch.autograd.forward_ad.make_dual(start.detach(), torch.ones(2))})
    with pytest.raises(UnsupportedTransformError, match="declare what is fixed"):
        jax.grad(lambda a: lc.export(HELD, "jax")(z, init={"a": a})[0].sum())(a)
    layer, v = lc.export(HELD, "tensorflow"), tf.Variable(a)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(tf.constant(z), init={"a": v})[0])
    with pytest.raises(UnsupportedTransformError, match="declare what is fixed"):
        tape.gradient(value, v)
    w = tf.Variable(z)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(w, init={"a": tf.stop_gradient(v)})[0])
    np.testing.assert_allclose(tape.gradient(value, w), [1.0, 1.0], atol=1e-9)


def test_a_compiled_problem_solves_and_reports():
    compiled = lc.compile(curve_fit())
    y = curves(3, 0.3)
    seen = []
    solution = compiled.solve(y, callback=lambda *told: seen.append(told))
    np.testing.assert_allclose(solution.values["x"], lc.export(curve_fit(), "torch")(torch.tensor(y))[0], atol=1e-9)
    assert seen and solution.info.ok.all()
    report = compiled.report()
    assert "x: 3 unknowns" in report and "100 rows (squares), Jacobian 100 x 3" in report and "levenberg-marquardt" in report
    assert "1 of 6 fixed" in lc.compile(pose_graph("SE2", 6, 1, 0.1)[0]).report()
    with pytest.raises(StoreError, match="residuals are functions"):
        compiled.save("nowhere")


@pytest.mark.parametrize("framework", ["jax", "tensorflow", "numpy"])
def test_callbacks_in_every_framework(framework):
    layer, y, seen = lc.export(curve_fit(), framework), curves(3, 0.3), []
    solution = layer.solve(y, callback=lambda step, cost, measure, values: seen.append((step, values.shape)))
    assert [s for s, _ in seen] == sorted(s for s, _ in seen) and seen[0] == (1, (3, 3))
    assert solution.info.history.shape[1:] == (3,)
    np.testing.assert_allclose(np.asarray(solution.outputs[0]), np.asarray(layer(y)[0]), atol=1e-9)
    stopped = layer.solve(y, callback=lambda step, *rest: step >= 2)
    assert (stopped.info.iterations <= 2).all() and not stopped.info.ok.all()


def test_a_wrong_jacobian_is_refused_in_jax_also_under_jit():
    import jax

    problem, y = curve_fit(jacobian=exponential_jacobian(1e-3)), curves(3, 0.3)
    layer = lc.export(problem, "jax")
    for call in (layer, layer.solve):
        with pytest.raises(BuildError, match="not the derivative"):
            call(y)
    with pytest.raises(Exception, match="did not converge"):
        jax.block_until_ready(jax.jit(lambda y: layer(y)[0])(y))
    flagged = lc.export(problem, "jax", on_error="flag")
    assert np.isnan(jax.jit(lambda y: flagged(y)[0])(y)).all()


def test_jax_refuses_linear_solves_of_the_host():
    with pytest.raises(OptionError, match="dense systems"):
        lc.export(curve_fit(), "jax", options={"linear": "cg"})
    lc.export(curve_fit(), "jax", options={"linear": "dense"})


@pytest.mark.parametrize("mode", STEPS)
def test_steps_that_do_not_arrive_raise(mode):
    layer = lc.export(curve_fit(), "torch", options={"backward": mode, "max_iterations": 2})
    with pytest.raises(SolveError):
        layer(torch.tensor(curves(2, 0.5), requires_grad=True))
