"""Least squares under transforms, and to second order: against differences of what was shown right before, and against each other."""

import numpy as np
import pytest
import torch

import layercompiler as lc
from layercompiler.errors import UnsupportedTransformError

T = torch.linspace(0, 1, 6, dtype=torch.float64)
S = torch.tensor(1.1, dtype=torch.float64)
Y = torch.stack([f * (2 * torch.exp(-T / 2) + 0.05 * torch.sin(9 * T)) for f in (1.0, 1.1, 0.9)])
W = torch.tensor([1.0, -0.6], dtype=torch.float64)


def problem(exp=torch.exp, t=T, upper=None):
    """A fit whose gradient is nonlinear in the parameters."""
    residual = lc.factor(lambda x, y, s: x[0] * exp(x[1] * t * s) - y**2 / 2, on="x", data=("y", "s"), robust=lc.PseudoHuber(0.1))
    return lc.LeastSquares({"x": lc.Euclidean(2, init=[1.0, 0.0], upper=upper)}, [residual], {"y": (6,), "s": ()})


def loss(layer):
    return lambda y, s: (layer(y, s)[0] * W).sum()


@pytest.fixture(params=[None, [1.5, 5.0]], ids=["free", "at a bound"])
def layer(request):
    return lc.export(problem(upper=request.param), "torch")


def test_second_order_by_autograd(layer):
    y, s = Y[0].clone().requires_grad_(), S.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda y, s: layer(y, s)[0], (y, s))


def test_torch_func_is_autograd(layer):
    f = loss(layer)
    y, s = Y[0].clone().requires_grad_(), S.clone().requires_grad_()
    first = torch.autograd.grad(f(y, s), (y, s), create_graph=True)
    for a, b in zip(first, torch.func.grad(f, (0, 1))(Y[0], S), strict=True):
        np.testing.assert_allclose(a.detach(), b, atol=1e-12)
    rows = torch.stack([torch.autograd.grad(g, y, retain_graph=True)[0] for g in first[0]])
    for transform in (
        torch.func.hessian,
        lambda f: torch.func.jacrev(torch.func.jacrev(f)),
        lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
    ):
        np.testing.assert_allclose(transform(f)(Y[0], S), rows, atol=1e-11 * float(rows.abs().max()))
    tangent = torch.sin(7 * T)
    np.testing.assert_allclose(torch.func.jvp(lambda y: f(y, S), (Y[0],), (tangent,))[1], first[0].detach() @ tangent, atol=1e-12)
    with torch.autograd.forward_ad.dual_level():
        moved = torch.autograd.forward_ad.unpack_dual(f(torch.autograd.forward_ad.make_dual(Y[0], tangent), S)).tangent
    np.testing.assert_allclose(moved, first[0].detach() @ tangent, atol=1e-12)


def test_vmap_is_a_batch(layer):
    batch = torch.stack([Y, 1.05 * Y])
    s = torch.tensor([1.0, 1.1, 1.2], dtype=torch.float64)
    np.testing.assert_allclose(torch.func.vmap(lambda y: layer(y, s)[0])(batch), layer(batch, s)[0], atol=1e-12)
    np.testing.assert_allclose(torch.func.vmap(lambda v: layer(Y, v)[0])(s[:2]), torch.stack([layer(Y, v)[0] for v in s[:2]]), atol=1e-12)
    mapped = torch.func.vmap(torch.func.grad(loss(layer)), (0, None))(Y, S)
    np.testing.assert_allclose(mapped, torch.stack([torch.func.grad(loss(layer))(y, S) for y in Y]), atol=1e-11)


def test_flagged_instances_under_transforms_are_nan_with_a_zero_gradient():
    layer = lc.export(problem(), "torch", on_error="flag")
    bad = Y.clone()
    bad[1, 2] = float("nan")
    values = torch.func.vmap(lambda y: layer(y, S)[0])(bad)
    gradients = torch.func.vmap(torch.func.grad(lambda y: layer(y, S)[0].sum()))(bad)
    assert torch.isnan(values[1]).all() and torch.isfinite(values[[0, 2]]).all()
    assert (gradients[1] == 0).all() and torch.isfinite(gradients).all() and (gradients[0] != 0).any()


@pytest.mark.parametrize(
    ("framework", "backward"),
    [("torch", "implicit"), ("torch", "truncated"), ("jax", "implicit"), ("jax", "truncated"), ("tensorflow", "implicit")],
)
def test_a_failed_instance_does_not_spoil_the_gradient_of_what_all_share(framework, backward):
    bad, kept = Y.numpy().copy(), [0, 2]
    bad[1, 2] = np.nan

    def gradients(y):
        options = {"backward": backward}
        if framework == "torch":
            layer = lc.export(problem(), "torch", on_error="flag", options=options)
            u, v = torch.tensor(y, requires_grad=True), S.clone().requires_grad_()
            return torch.autograd.grad(layer(u, v)[0].nansum(), (u, v))
        if framework == "jax":
            import jax

            layer = lc.export(problem(jax.numpy.exp, T.numpy()), "jax", on_error="flag", options=options)
            return jax.grad(lambda y, s: jax.numpy.nansum(layer(y, s)[0]), (0, 1))(y, 1.1)
        import tensorflow as tf

        layer = lc.export(problem(tf.exp, T.numpy()), "tensorflow", on_error="flag", options=options)
        u, v = tf.Variable(y), tf.Variable(S.numpy())
        with tf.GradientTape() as tape:
            x = layer(u, v)[0]
            value = tf.reduce_sum(tf.where(tf.math.is_nan(x), tf.zeros_like(x), x))
        return tape.gradient(value, (u, v))

    (y, s), (expected, shared) = gradients(bad), gradients(bad[kept])
    assert (np.asarray(y)[1] == 0).all()
    np.testing.assert_allclose(np.asarray(y)[kept], expected, atol=1e-10)
    np.testing.assert_allclose(s, shared, rtol=1e-9)


def test_a_compiled_function_breaks_its_graph_at_the_layer():
    layer = lc.export(problem(), "torch")
    y = Y[0].clone().requires_grad_()
    compiled = torch.compile(lambda v: (layer(2 * v, S)[0] * W).sum(), backend="eager")
    np.testing.assert_allclose(
        torch.autograd.grad(compiled(y), y)[0], torch.autograd.grad((layer(2 * y, S)[0] * W).sum(), y)[0], atol=1e-12
    )


def test_approximate_modes_refuse_transforms_and_second_order():
    layer = lc.export(problem(), "torch", options={"backward": "gauss_newton"})
    with pytest.raises(UnsupportedTransformError):
        torch.func.vmap(lambda y: layer(y, S)[0])(Y)
    y = Y[0].clone().requires_grad_()
    (g,) = torch.autograd.grad(layer(y, S)[0].sum(), y, create_graph=True)
    with pytest.raises(RuntimeError):
        g.sum().backward()


def test_nested_tapes_of_tensorflow():
    import tensorflow as tf

    layer = lc.export(problem(tf.exp, T.numpy()), "tensorflow")
    y, s = tf.Variable(Y[0].numpy()), tf.Variable(S.numpy())
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            value = tf.reduce_sum(layer(y, s)[0] * W.numpy())
        first = inner.gradient(value, [y, s])
        weighed = tf.reduce_sum(first[0] * np.sin(7 * T.numpy())) + first[1]
    u, v = Y[0].clone().requires_grad_(), S.clone().requires_grad_()
    expected = torch.autograd.grad(loss(lc.export(problem(), "torch"))(u, v), (u, v), create_graph=True)
    total = (expected[0] * torch.sin(7 * T)).sum() + expected[1]
    for a, b in zip(outer.gradient(weighed, [y, s]), torch.autograd.grad(total, (u, v)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
    approximate = lc.export(problem(tf.exp, T.numpy()), "tensorflow", options={"backward": "gauss_newton"})
    with tf.GradientTape() as outer, pytest.raises(UnsupportedTransformError):
        with tf.GradientTape() as inner:
            value = tf.reduce_sum(approximate(y, s)[0])
        outer.gradient(inner.gradient(value, y), y)


@pytest.mark.parametrize("on_error", ["raise", pytest.param("flag", marks=pytest.mark.slow)])
def test_tf_function_is_eager_mode(on_error):
    import tensorflow as tf

    layer = lc.export(problem(tf.exp, T.numpy()), "tensorflow", on_error=on_error)

    def run(y, s):
        with tf.GradientTape() as tape:
            tape.watch((y, s))
            x = layer(y, s)[0]
            value = tf.reduce_sum(x * W.numpy())
        return x, *tape.gradient(value, (y, s))

    batch = Y.numpy().copy()
    if on_error == "flag":
        batch[1, 2] = np.nan
    for a, b in zip(run(tf.constant(batch), tf.constant(1.1, tf.float64)), tf.function(run)(batch, np.float64(1.1)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
    with pytest.raises(Exception, match="batch size is not known"):  # in a class of TensorFlow's
        tf.function(run, input_signature=[tf.TensorSpec((None, 6), tf.float64), tf.TensorSpec((), tf.float64)])(batch, np.float64(1.1))


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_problem_of_the_modelling_language_is_mapped_and_differentiated_twice(framework):
    import cvxpy as cp

    c, seen = cp.Variable(2, name="c"), cp.Parameter(6, name="seen")
    layer = lc.export(cp.Problem(cp.Minimize(cp.sum_squares(c[0] * cp.exp(c[1] * T.numpy()) - seen))), framework)
    init = {"c": [1.0, 0.0]}
    if framework == "torch":
        f = lambda y: (layer(y, init=init)[0] * W).sum()  # noqa: E731
        mapped = torch.func.vmap(torch.func.hessian(f))(Y)
        single = [torch.autograd.functional.hessian(f, y) for y in Y]
    else:
        import jax

        f = lambda y: (layer(y, init=init)[0] * W.numpy()).sum()  # noqa: E731
        mapped = jax.jit(jax.vmap(jax.hessian(f)))(Y.numpy())
        single = [jax.hessian(f)(y) for y in Y.numpy()]
    for a, b in zip(mapped, single, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
    h = 1e-5
    gradient = torch.func.grad(f) if framework == "torch" else jax.grad(f)
    at = Y[0] if framework == "torch" else Y[0].numpy()
    step = np.sin(5 * T.numpy())
    step = torch.tensor(step) if framework == "torch" else step
    np.testing.assert_allclose(mapped[0] @ step, (gradient(at + h * step) - gradient(at - h * step)) / (2 * h), rtol=1e-5, atol=1e-8)
