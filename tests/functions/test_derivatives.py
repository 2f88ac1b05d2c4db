"""Values and derivatives of every function: four frameworks, differences, batches, transforms, second order."""

import numpy as np
import pytest

from layercompiler import arrays
from tests.differences import directional
from tests.functions.cases import cases

CASES = cases()
DERIVING = ("torch", "jax", "tensorflow")
LINEAR_ONLY = {"polyhedron"}  # the layer of a program: its own tests say which transforms it has
rng = np.random.default_rng(2)
DIRECTIONS = {name: [rng.standard_normal(np.shape(a)) for a in case.arguments] for name, case in CASES.items()}
for name in ("transport", "optimal transport", "kl transport", "wide transport"):  # along marginals of equal sums
    for k in (1, 2):
        DIRECTIONS[name][k] = DIRECTIONS[name][k] - DIRECTIONS[name][k].mean()
        DIRECTIONS[name][k] *= 0.1


def cotangent(case):
    return np.random.default_rng(3).standard_normal(np.shape(case.function(*case.arguments)))


@pytest.mark.parametrize("framework", DERIVING)
@pytest.mark.parametrize("name", CASES)
def test_first_derivatives(name, framework):
    case, direction = CASES[name], DIRECTIONS[name]
    xp = arrays.get(framework)
    expected, error = directional(lambda a: case.function(*a), [np.asarray(a) for a in case.arguments], direction)
    args, tangents, c = [xp.new(a) for a in case.arguments], [xp.new(d) for d in direction], cotangent(case)
    value, pull = xp.vjp(case.function, *args)
    np.testing.assert_allclose(xp.numpy(value), case.function(*case.arguments), rtol=1e-11, atol=1e-11)
    pulled = sum(np.sum(xp.numpy(g) * d) for g, d in zip(pull(xp.new(c)), direction, strict=True))
    size = np.linalg.norm(expected) + 1e-3
    assert abs(pulled - c @ expected) <= (1e-8 * size + 3 * np.linalg.norm(error)) * np.linalg.norm(c)
    if name not in LINEAR_ONLY or framework != "tensorflow":
        tangent = xp.numpy(xp.jvp(case.function, args, tangents)[1])
        assert np.linalg.norm(tangent - expected) <= 1e-8 * size + 3 * np.linalg.norm(error)
        assert abs(pulled - c @ tangent) <= 1e-10 * size * np.linalg.norm(c)


@pytest.mark.parametrize("framework", ["torch", *(pytest.param(f, marks=pytest.mark.slow) for f in ("jax", "tensorflow"))])
@pytest.mark.parametrize("name", [n for n in CASES if n not in LINEAR_ONLY])
def test_second_derivatives(name, framework):
    case, direction, c = CASES[name], DIRECTIONS[name], cotangent(CASES[name])
    xp = arrays.get(framework)
    tangents = [xp.new(d) for d in direction]
    like = [xp.new(np.asarray(a)) for a in case.arguments]

    def along(*args):  # <c, J(args) direction>
        return xp.sum(xp.new(c) * xp.jvp(case.function, args, tangents)[1])

    def pulled(*args):
        _, pull = xp.vjp(case.function, *args)
        return sum(xp.sum(g * t) for g, t in zip(pull(xp.new(c)), tangents, strict=True))

    def first(points):
        rows = [xp.numpy(along(*(xp.new(p[i]) for p in points))) for i in range(len(points[0]))]
        return np.array(rows)[:, None]

    expected, error = directional(first, [np.asarray(a) for a in case.arguments], direction, steps=(8e-3, 1e-3))
    forward_over_reverse = float(xp.numpy(xp.jvp(pulled, like, tangents)[1]))
    _, pull = xp.vjp(pulled, *like)
    reverse_over_reverse = sum(float(np.sum(xp.numpy(g) * d)) for g, d in zip(pull(xp.ones_like(pulled(*like))), direction, strict=True))
    assert case.curved == (abs(expected[0]) > 1e-6), expected
    for got in (forward_over_reverse, reverse_over_reverse):
        assert abs(got - expected[0]) <= 1e-7 * max(abs(expected[0]), 1e-2) + 3 * error[0], (got, expected, error)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_its_singles(name):
    case = CASES[name]
    batch = [np.stack([a + 0.01 * k * d for k in range(3)]) for a, d in zip(case.arguments, DIRECTIONS[name], strict=True)]
    together = case.function(*(b[None] for b in batch))[0]
    for k in range(3):
        np.testing.assert_allclose(together[k], case.function(*(b[k] for b in batch)), rtol=1e-9, atol=1e-10)
    shared = case.function(batch[0], *case.arguments[1:])  # parameters broadcast over the batch
    np.testing.assert_allclose(shared[1], case.function(batch[0][1], *case.arguments[1:]), rtol=1e-9, atol=1e-10)
    empty = case.function(batch[0][:0], *case.arguments[1:]) if name not in LINEAR_ONLY else together[:0]
    assert empty.shape == (0, *together.shape[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CASES if n not in LINEAR_ONLY])
def test_transforms(name):
    import jax
    import tensorflow as tf
    import torch

    case = CASES[name]
    batch = [np.stack([a, a + 0.01 * d]) for a, d in zip(case.arguments, DIRECTIONS[name], strict=True)]
    want = case.function(*batch)
    jacobians = jax.vmap(jax.jacfwd(case.function))(*(jax.numpy.asarray(b) for b in batch))
    np.testing.assert_allclose(jax.jit(jax.vmap(case.function))(*batch), want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.jacrev(case.function)))(*batch), jacobians, rtol=1e-8, atol=1e-8)
    ours = torch.func.vmap(torch.func.jacrev(case.function))(*(torch.tensor(b) for b in batch))
    np.testing.assert_allclose(ours, jacobians, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(tf.function(case.function)(*(tf.constant(b) for b in batch)), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in CASES if n not in LINEAR_ONLY])
def test_single_precision_stays(name):
    import torch

    case = CASES[name]
    got = case.function(*(torch.tensor(np.asarray(a), dtype=torch.float32) for a in case.arguments))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, case.function(*case.arguments), rtol=2e-4, atol=2e-4)
