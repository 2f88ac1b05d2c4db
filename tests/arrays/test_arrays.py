"""The array functions mean the same in every framework, and the transformations are right at first and second order."""

import numpy as np
import pytest

from layercompiler import arrays
from layercompiler.errors import DtypeError, OptionError, UnsupportedTransformError

DERIVING = ("torch", "jax", "tensorflow")
X = np.random.default_rng(0).standard_normal((3, 4))
SPD = X @ X.T + np.eye(3)
NAMES = {
    "reductions": lambda xp, x: xp.sum(x, axis=-1) + xp.max(x, axis=-1) - xp.min(x, axis=1) + xp.mean(x, axis=1) + xp.prod(x, axis=1),
    "keepdims": lambda xp, x: x - xp.sum(x, axis=0, keepdims=True),
    "elementwise": lambda xp, x: xp.exp(x) + xp.sin(x) * xp.tanh(x) + xp.sqrt(xp.abs(x)) + xp.sign(x) + xp.atan2(x, 1 + x * x),
    "inverse": lambda xp, x: xp.asinh(x) + xp.atan(x) + xp.log1p(x * x) + xp.acos(xp.tanh(x)),
    "where": lambda xp, x: xp.where(x > 0, x, xp.zeros_like(x)) + xp.maximum(x, 0.1) + xp.minimum(x, 0.2) + xp.clip(x, -0.5, 0.5),
    "shapes": lambda xp, x: xp.concat([xp.reshape(x, (4, 3)), xp.permute_dims(x, (1, 0))], axis=1) * xp.broadcast_to(x[:1, :1], (4, 6)),
    "matrices": lambda xp, x: xp.matmul(xp.matrix_transpose(x), x) + xp.einsum("ij,ik->jk", x, x),
    "solve": lambda xp, x: xp.linalg.solve(xp.new(SPD, x), x),
    "solve vector": lambda xp, x: xp.linalg.solve(xp.new(SPD, x), x[:, 0]),
    "triangular": lambda xp, x: (lambda L: xp.solve_triangular(L, x) + xp.solve_triangular(L, x, transposed=True))(
        xp.linalg.cholesky(xp.new(SPD, x))
    ),
    "eigh": lambda xp, x: xp.linalg.eigh(xp.new(SPD, x))[0],
    "svd": lambda xp, x: xp.matmul(
        xp.linalg.svd(x, full_matrices=False)[0] * xp.linalg.svd(x, full_matrices=False)[1], xp.linalg.svd(x, full_matrices=False)[2]
    ),
    "norms": lambda xp, x: xp.linalg.vector_norm(x, axis=-1) + xp.vecdot(x, x),
    "sorting": lambda xp, x: xp.sort(x, axis=-1) + xp.cumulative_sum(x, axis=-1) + xp.flip(x, axis=-1),
    "gather": lambda xp, x: xp.take(x, xp.new(np.array([2, 0, 2])), axis=1) + xp.take_along_axis(x, xp.argsort(x, axis=-1), axis=-1)[:, :3],
    "scatter": lambda xp, x: xp.segment_sum(x, np.array([1, 0, 1]), 3),
    "softplus": lambda xp, x: xp.softplus(100 * x) + xp.softplus(x) + xp.logsumexp(x, axis=1, keepdims=True),
    "new": lambda xp, x: x * xp.new(2.0, x) + xp.new([1, 2, 3, 4.0], x) + xp.eye_like(x, 4)[:3],
    "vmap": lambda xp, x: xp.vmap(lambda row, s: xp.sum(row) * s * row, in_axes=(0, None))(x, x[0]),
    "loop": lambda xp, x: xp.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v * v), (xp.new(0), x))[1],
}


@pytest.mark.parametrize("framework", DERIVING)
@pytest.mark.parametrize("name", NAMES)
def test_names_mean_what_numpy_means(framework, name):
    xp, host = arrays.get(framework), arrays.get("numpy")
    got = NAMES[name](xp, xp.new(X))
    want = NAMES[name](host, X)
    assert arrays.of(got) is xp and xp.numpy(got).dtype == np.float64
    np.testing.assert_allclose(xp.numpy(got), want, rtol=1e-12, atol=1e-12)


def cubic(xp, x, w):
    return xp.stack([xp.sum(x**3 * w), x[0] * x[1] * w[2], xp.sin(w[0]) * x[2]])


@pytest.mark.parametrize("framework", DERIVING)
def test_transformations(framework):
    xp = arrays.get(framework)
    x, w, c, dx, dw = (xp.new(v) for v in np.random.default_rng(1).standard_normal((5, 3)))
    f = lambda x, w: cubic(xp, x, w)  # noqa: E731
    n = xp.numpy
    value, pull = xp.vjp(f, x, w)
    gx, gw = pull(c)
    same, along = xp.jvp(f, (x, w), (dx, dw))
    np.testing.assert_allclose(n(value), n(same))
    assert np.dot(n(along), n(c)) == pytest.approx(np.dot(n(gx), n(dx)) + np.dot(n(gw), n(dw)), rel=1e-12)
    J = n(xp.jacobian(lambda v: f(v, w), x))
    np.testing.assert_allclose(J.T @ n(c), n(gx), rtol=1e-12)
    h = 1e-5
    difference = (n(f(x + h * dx, w + h * dw)) - n(f(x - h * dx, w - h * dw))) / (2 * h)
    np.testing.assert_allclose(n(along), difference, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("framework", DERIVING)
def test_transformations_nest(framework):
    xp = arrays.get(framework)
    x, v = (xp.new(v) for v in np.random.default_rng(2).standard_normal((2, 3)))
    f = lambda x: xp.sum(xp.exp(x) * x[0]) + xp.sum(x**3)  # noqa: E731
    H = np.diag(np.exp(xp.numpy(x)) * xp.numpy(x)[0] + 6 * xp.numpy(x))
    H[0] += np.exp(xp.numpy(x))
    H[:, 0] += np.exp(xp.numpy(x))
    want = H @ xp.numpy(v)
    forward_over_reverse = xp.jvp(xp.grad(f), (x,), (v,))[1]
    reverse_over_reverse = xp.grad(lambda x: xp.sum(xp.grad(f)(x) * v))(x)
    reverse_over_forward = xp.grad(lambda x: xp.jvp(f, (x,), (v,))[1])(x)
    for got in (forward_over_reverse, reverse_over_reverse, reverse_over_forward):
        np.testing.assert_allclose(xp.numpy(got), want, rtol=1e-12)
    rows = xp.vmap(xp.grad(f))(xp.stack([x, v]))
    np.testing.assert_allclose(xp.numpy(rows[0]), xp.numpy(xp.grad(f)(x)), rtol=1e-12)


def test_gradient_through_an_unused_argument_is_zero():
    for framework in DERIVING:
        xp = arrays.get(framework)
        _, pull = xp.vjp(lambda a, b: a * 2.0, xp.new(X), xp.new(X))
        np.testing.assert_array_equal(xp.numpy(pull(xp.new(X))[1]), 0.0)


def test_dispatch_refuses_mixtures_and_strangers():
    import jax.numpy as jnp
    import torch

    assert arrays.of(1.0, np.ones(2)).name == "numpy" and arrays.of(2, torch.ones(1)).name == "torch"
    with pytest.raises(DtypeError, match="several frameworks"):
        arrays.of(torch.ones(1), jnp.ones(1))
    with pytest.raises(DtypeError, match="known framework"):
        arrays.of(object())
    with pytest.raises(OptionError):
        arrays.get("mxnet")
    with pytest.raises(UnsupportedTransformError, match="numpy has no"):
        arrays.get("numpy").vjp(lambda x: x, X)


def test_traced_values_have_no_numbers():
    import jax
    import tensorflow as tf
    import torch

    def ask(xp, x):
        with pytest.raises(UnsupportedTransformError):
            xp.numpy(x)
        assert xp.traced(x)
        return x

    jax.jit(lambda x: ask(arrays.get("jax"), x))(np.ones(2))
    torch.func.vmap(lambda x: ask(arrays.get("torch"), x))(torch.ones(2))
    tf.function(lambda x: ask(arrays.get("tensorflow"), x))(tf.ones(2))
