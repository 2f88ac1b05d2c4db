"""One estimator, one seed: the same numbers in numpy, torch, jax and TensorFlow; transforms of each."""

import copy
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import layercompiler as lc
from layercompiler import errors
from tests.discrete.problems import knapsack

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ESTIMATORS = {
    "imle": lc.IMLE(samples=4, noise=lc.noise.SumOfGamma(3)),
    "all": lc.IMLE(samples=4, output="all"),
    "perturbed": lc.Perturbed(samples=7),
    "identity": lc.Identity(),
}
THETA = np.random.default_rng(0).standard_normal((3, 6))
W = np.random.default_rng(1).standard_normal(6)


def _torch(layer, theta, seed):
    torch = pytest.importorskip("torch")
    t = torch.tensor(theta, requires_grad=True)
    (z,) = layer(t, seed=seed)
    ((z @ torch.tensor(W)) ** 2).sum().backward()
    return z.detach().numpy(), t.grad.numpy()


def _jax(layer, theta, seed):
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        f = jax.jit(jax.value_and_grad(lambda t: ((layer(t, seed=seed)[0] @ W) ** 2).sum()))
        return np.asarray(layer(theta, seed=seed)[0]), np.asarray(f(jax.numpy.asarray(theta))[1])


def _tensorflow(layer, theta, seed):
    tf = pytest.importorskip("tensorflow")
    t = tf.constant(theta)

    def step(t):
        with tf.GradientTape() as tape:
            tape.watch(t)
            (z,) = layer(t, seed=seed)
            y = tf.reduce_sum(tf.linalg.matvec(z, tf.constant(W)) ** 2)
        return z, tape.gradient(y, t)

    z, g = step(t)
    _, other = tf.function(step, autograph=False)(t)
    np.testing.assert_array_equal(g.numpy(), other.numpy())
    return z.numpy(), g.numpy()


RUN = {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}


def expected(compiled, theta, seed):
    sample = compiled.sample([theta], [seed])
    (z,) = sample.outputs
    return z, compiled.pull([theta], sample.solutions, sample.noise, [2 * (z @ W)[..., None] * W])[0]


@pytest.mark.parametrize("framework", RUN)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_same_numbers_in_every_framework(framework, name):
    layer = lc.export(lc.oracles.TopK(6, 3), framework, estimator=ESTIMATORS[name])
    z, g = RUN[framework](layer, THETA, 5)
    for found, wanted in zip((z, g), expected(layer.compiled, THETA, 5), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("framework", RUN)
def test_cvxpy_problems_through_the_same_line(framework):
    problem, c, x = knapsack(6, 1, 15.0)
    layer = lc.export(problem, framework, parameters=[c], variables=[x], estimator=lc.IMLE(samples=3))
    theta = np.abs(THETA)
    z, g = RUN[framework](layer, theta, 2)
    for found, wanted in zip((z, g), expected(layer.compiled, theta, 2), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
    assert f"oracle: {layer.compiled.space.oracle}" in repr(layer)


@pytest.mark.parametrize("framework", RUN)
def test_losses_in_every_framework(framework):
    layer = lc.export(lc.oracles.TopK(6, 3), framework, estimator=lc.Identity())
    true = THETA[::-1].copy()
    value, (gradient,) = layer.compiled.loss(lc.losses.SPOPlus(), [THETA], {"true": [true]})
    spo = lc.losses.SPOPlus()
    if framework == "torch":
        torch = pytest.importorskip("torch")
        t = torch.tensor(THETA, requires_grad=True)
        found = layer.loss(spo, t, true=torch.tensor(true))
        (3 * found).sum().backward()
        found, g = found.detach().numpy(), t.grad.numpy()
    elif framework == "jax":
        jax = pytest.importorskip("jax")
        with jax.enable_x64(True):
            found = np.asarray(jax.jit(lambda t: layer.loss(spo, t, true=true))(THETA))
            g = np.asarray(jax.jit(jax.grad(lambda t: 3 * layer.loss(spo, t, true=true).sum()))(THETA))
    else:
        tf = pytest.importorskip("tensorflow")
        t = tf.constant(THETA)
        with tf.GradientTape() as tape:
            tape.watch(t)
            found = layer.loss(spo, t, true=tf.constant(true))
            y = 3 * tf.reduce_sum(found)
        found, g = found.numpy(), tape.gradient(y, t).numpy()
    np.testing.assert_allclose(found, value, atol=1e-12)
    np.testing.assert_allclose(g, 3 * gradient, atol=1e-12)


def test_expectations_by_the_score_function_agree():
    torch = pytest.importorskip("torch")
    jax = pytest.importorskip("jax")
    tf = pytest.importorskip("tensorflow")
    estimator = lc.ScoreFunction(samples=9)
    make = {k: lc.export(lc.oracles.TopK(6, 3), k, estimator=estimator) for k in ("torch", "jax", "tensorflow")}
    compiled = make["torch"].compiled
    sample = compiled.sample([THETA], [4])
    values = ((sample.solutions - 0.3) ** 2 * W).sum(-1)
    (g,) = compiled.weights([THETA], sample.solutions, sample.noise, values)
    t, w = torch.tensor(THETA, requires_grad=True), torch.tensor(W, requires_grad=True)
    out = make["torch"].expect(lambda z: ((z - 0.3) ** 2 * w).sum(-1), t, seed=4)
    out.sum().backward()
    np.testing.assert_allclose(out.detach(), values.mean(1), atol=1e-12)
    np.testing.assert_allclose(t.grad, g, atol=1e-12)
    assert w.grad is not None
    with jax.enable_x64(True):
        grad = jax.jit(jax.grad(lambda t: make["jax"].expect(lambda z: ((z - 0.3) ** 2 * W).sum(-1), t, seed=4).sum()))
        np.testing.assert_allclose(grad(THETA), g, atol=1e-12)
    v = tf.constant(THETA)
    with tf.GradientTape() as tape:
        tape.watch(v)
        y = make["tensorflow"].expect(lambda z: tf.reduce_sum((z - 0.3) ** 2 * W, -1), v, seed=4)
    np.testing.assert_allclose(tape.gradient(y, v), g, atol=1e-12)
    with pytest.raises(errors.UnsupportedTransformError, match="expect"):
        make["torch"](t)[0].sum().backward()
    with pytest.raises(errors.OptionError, match="all samples"):
        lc.export(lc.oracles.TopK(6, 3), "torch", estimator=lc.IMLE()).expect(lambda z: z.sum(-1), t)


# ----------------------------------------------------------------------------------------------------------------------- torch


@pytest.fixture
def layer():
    pytest.importorskip("torch")
    return lc.export(lc.oracles.TopK(6, 3), "torch", estimator=lc.IMLE(samples=4))


def test_torch_seeds_and_dtypes(layer):
    import torch

    t = torch.tensor(THETA)
    torch.manual_seed(0)
    a, b = layer(t)[0], layer(t)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(layer(t)[0], a, rtol=0, atol=0)
    assert not torch.equal(a, b)
    g = [torch.Generator().manual_seed(3) for _ in range(2)]
    torch.testing.assert_close(layer(t, generator=g[0])[0], layer(t, generator=g[1])[0], rtol=0, atol=0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert layer(t.to(dtype), seed=1)[0].dtype is dtype
    assert layer(costs=t)[0].shape == (3, 6)


def test_torch_transforms(layer):
    import torch

    t, w = torch.tensor(THETA), torch.tensor(W)

    def f(t, seed=3):
        return ((layer(t, seed=seed)[0] @ w) ** 2).sum()

    plain = torch.func.grad(f)(t)
    leaf = t.clone().requires_grad_()
    torch.compile(f, fullgraph=True, backend="aot_eager")(leaf).backward()
    torch.testing.assert_close(leaf.grad, plain, rtol=0, atol=0)
    seeds = torch.arange(3)[:, None]
    mapped = torch.func.vmap(torch.func.grad(f))(t, seeds)
    torch.testing.assert_close(mapped, torch.stack([torch.func.grad(f)(t[i], i) for i in range(3)]))
    with pytest.raises(errors.UnsupportedTransformError):
        leaf = t.clone().requires_grad_()
        (g,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
        g.sum().backward()
    with pytest.raises((errors.UnsupportedTransformError, NotImplementedError, RuntimeError)):
        torch.func.jvp(f, (t,), (t,))


def test_torch_copies(layer):
    import torch

    t = torch.tensor(THETA)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(t, seed=1)[0], layer(t, seed=1)[0], rtol=0, atol=0)


def test_native_arrays_reach_the_solver():
    torch = pytest.importorskip("torch")
    jax = pytest.importorskip("jax")
    seen = []

    def top(values):
        seen.append(type(values))
        return (values >= values.max(-1, keepdims=True).values) * 1.0

    layer = lc.export(lc.BlackBox(top, sense="max", arrays="torch"), "torch", estimator=lc.IMLE(samples=2))
    t = torch.tensor(THETA, requires_grad=True)
    layer(t)[0].sum().backward()
    assert all(issubclass(k, torch.Tensor) for k in seen) and len(seen) == 2
    box = lc.BlackBox(lambda v: jax.nn.one_hot(v.argmax(-1), 6), sense="max", arrays="jax")
    assert lc.export(box, "jax", estimator=lc.DBB())(THETA)[0].sum() == 3
    tf = pytest.importorskip("tensorflow")
    box = lc.BlackBox(lambda v: tf.one_hot(tf.argmax(v, -1), 6), sense="max", arrays="tensorflow")
    layer, t = lc.export(box, "tensorflow", estimator=lc.IMLE(samples=2)), tf.constant(THETA)
    with tf.GradientTape() as tape:
        tape.watch(t)
        y = tf.reduce_sum(layer(t, seed=1)[0] * tf.constant(W))
    assert tape.gradient(y, t).shape == THETA.shape


# ------------------------------------------------------------------------------------------------------------------------- jax


def test_jax_keys_and_transforms():
    jax = pytest.importorskip("jax")
    layer = lc.export(lc.oracles.TopK(6, 3), "jax", estimator=lc.IMLE(samples=4))
    with pytest.raises(errors.OptionError, match="key"):
        layer(THETA)
    with jax.enable_x64(True):
        t, key = jax.numpy.asarray(THETA), jax.random.key(0)
        f = jax.grad(lambda t, k: ((layer(t, key=k)[0] @ W) ** 2).sum())
        np.testing.assert_array_equal(f(t, key), jax.jit(f)(t, key))
        keys = jax.random.split(key, 3)
        np.testing.assert_allclose(jax.jit(jax.vmap(f))(t, keys), np.stack([f(t[i], keys[i]) for i in range(3)]), atol=1e-12)
        np.testing.assert_allclose(jax.vmap(f, (0, None))(t, key), np.stack([f(t[i], key) for i in range(3)]), atol=1e-12)
        np.testing.assert_allclose(jax.vmap(f, (None, 0))(t, keys), np.stack([f(t, k) for k in keys]), atol=1e-12)
        with pytest.raises(errors.UnsupportedTransformError):
            jax.grad(lambda t: f(t, key).sum())(t)
        with pytest.raises(TypeError):
            jax.jvp(lambda t: layer(t, key=key)[0], (t,), (t,))


# ------------------------------------------------------------------------------------------------------------------ torch-imle


def reference_imle(theta, e, dy_of, solver, alpha, beta, t_in, t_target, samples):
    """torch-imle's formula, by loops: samples side by side, mean of differences, not divided by beta."""
    B = len(theta)
    z = np.stack([solver(theta[i] + t_in * e[i, s]) for i in range(B) for s in range(samples)])
    dy = dy_of(z).reshape(B, samples, -1)
    target = np.stack([[solver(alpha * theta[i] - beta * dy[i, s] + t_target * e[i, s]) for s in range(samples)] for i in range(B)])
    return z, (z.reshape(B, samples, -1) - target).mean(1)


def top(u):
    z = np.zeros_like(u)
    z[np.argsort(u)[-3:]] = 1
    return z


@pytest.mark.parametrize("samples", [1, 5])
def test_torch_imle_formula_exactly(samples):
    torch = pytest.importorskip("torch")
    from layercompiler.torch.imle import BaseNoiseDistribution, TargetDistribution, imle

    e = np.random.default_rng(3).standard_normal((3, samples, 6))

    class Fixed(BaseNoiseDistribution):
        def sample(self, shape):
            assert tuple(shape) == e.shape
            return torch.tensor(e)

    target = TargetDistribution(alpha=0.5, beta=3.0)

    @imle(
        target_distribution=target,
        noise_distribution=Fixed(),
        nb_samples=samples,
        input_noise_temperature=0.8,
        target_noise_temperature=1.2,
    )
    def solver(theta):
        return torch.tensor(np.stack([top(u) for u in theta.detach().numpy()]))

    t = torch.tensor(THETA, requires_grad=True)
    z = solver(t)
    ((z @ torch.tensor(W)) ** 2).sum().backward()
    expected_z, expected_g = reference_imle(THETA, e, lambda z: 2 * (z @ W)[:, None] * W, top, 0.5, 3.0, 0.8, 1.2, samples)
    assert z.shape == (3 * samples, 6)
    np.testing.assert_array_equal(z.detach(), expected_z)
    np.testing.assert_array_equal(t.grad, expected_g)


def demonstration(imle, target_distribution, noise_distribution):
    """torch-imle's demonstration: its decorator around a path solver, a Hamming loss, one step."""
    torch = pytest.importorskip("torch")

    @imle(
        target_distribution=target_distribution(alpha=1.0, beta=10.0),
        noise_distribution=noise_distribution(),
        nb_samples=3,
        input_noise_temperature=1.0,
        target_noise_temperature=5.0,
    )
    def imle_solver(weights):
        paths = lc.oracles.GridPath(8, 8)(-weights.detach().cpu().numpy())
        return torch.tensor(paths, requires_grad=False)

    rng = np.random.default_rng(0)
    weights = torch.nn.Parameter(torch.tensor(-rng.uniform(1, 9, (2, 8, 8))))
    target = torch.tensor(lc.oracles.GridPath(8, 8)(rng.uniform(1, 9, (2, 8, 8)))).repeat_interleave(3, 0)
    suggested = imle_solver(weights)
    (suggested * (1.0 - target) + (1.0 - suggested) * target).mean(dim=0).sum().backward()
    return suggested.detach().numpy(), weights.grad.numpy()


def fixed_noise(base):
    torch = pytest.importorskip("torch")

    class Fixed(base):
        def sample(self, shape):
            return torch.tensor(np.random.default_rng(9).gumbel(size=tuple(shape)))

    return Fixed


def test_its_demonstration_runs():
    from layercompiler.torch import imle as ours

    paths, gradient = demonstration(ours.imle, ours.TargetDistribution, fixed_noise(ours.BaseNoiseDistribution))
    assert paths.shape == (6, 8, 8) and gradient.shape == (2, 8, 8) and gradient.any()
    paths, _ = demonstration(ours.imle, ours.TargetDistribution, lambda: ours.SumOfGammaNoiseDistribution(k=10.4, nb_iterations=100))
    assert len(np.unique(paths, axis=0)) > 1


@pytest.mark.skipif("TORCH_IMLE" not in os.environ, reason="TORCH_IMLE names no checkout of torch-imle")
def test_its_demonstration_gives_the_numbers_of_the_original(monkeypatch):
    from layercompiler.torch import imle as ours

    monkeypatch.syspath_prepend(os.environ["TORCH_IMLE"])
    from imle.noise import BaseNoiseDistribution
    from imle.target import TargetDistribution
    from imle.wrapper import imle

    original = demonstration(imle, TargetDistribution, fixed_noise(BaseNoiseDistribution))
    found = demonstration(ours.imle, ours.TargetDistribution, fixed_noise(ours.BaseNoiseDistribution))
    for a, b in zip(found, original, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_decorator_calls_through_an_executor_and_as_a_function():
    torch = pytest.importorskip("torch")
    threads = set()

    def solver(theta, sign):
        threads.add(threading.current_thread().name)
        theta = sign * theta
        return torch.tensor(np.stack([top(u) for u in theta.numpy()]))

    t = torch.tensor(THETA, requires_grad=True)
    with ThreadPoolExecutor(2, "solver") as pool:
        z = lc.imle(solver, nb_samples=2, executor=pool)(t, 1.0)
        (z @ torch.tensor(W)).sum().backward()
    assert threads and all(name.startswith("solver") for name in threads)
    plain = torch.tensor(THETA, requires_grad=True)
    same = lc.imle(lambda theta: torch.tensor(np.stack([top(u) for u in theta.numpy()])), nb_samples=2)(plain)
    (same @ torch.tensor(W)).sum().backward()
    np.testing.assert_array_equal(z.detach(), same.detach())
    np.testing.assert_array_equal(t.grad, plain.grad)


def test_targets_of_the_users_own_see_what_torch_imle_hands_them():
    torch = pytest.importorskip("torch")
    from layercompiler.torch.imle import BaseTargetDistribution, imle

    class Seen(BaseTargetDistribution):
        def params(self, theta, dy):
            assert theta.shape == dy.shape == (6, 6)
            return theta - 2.0 * dy

    t = torch.tensor(THETA, requires_grad=True)
    z = imle(lambda u: torch.tensor(np.stack([top(x) for x in u.numpy()])), target_distribution=Seen(), nb_samples=2)(t)
    (z @ torch.tensor(W)).sum().backward()
    np.testing.assert_array_equal(t.grad, np.stack([top(u) - top(u - 2.0 * W) for u in THETA]))


def test_the_layer_with_that_scaling_is_torch_imle_too():
    estimator = lc.IMLE(
        samples=5, step=3.0, scaling="torch-imle", difference="forward", output="all", temperature=0.8, target_temperature=1.2
    )
    compiled = lc.compile(lc.oracles.TopK(6, 3), estimator=estimator)
    sample = compiled.sample([THETA], [1])
    dy = 2 * (sample.outputs[0] @ W)[..., None] * W
    z, g = reference_imle(THETA, sample.noise, lambda z: dy.reshape(-1, 6), top, 1.0, 3.0, 0.8, 1.2, 5)
    np.testing.assert_array_equal(sample.outputs[0].reshape(-1, 6), z)
    np.testing.assert_array_equal(compiled.pull([THETA], sample.solutions, sample.noise, [dy])[0], g)


def test_the_decorator_finds_the_framework():
    torch = pytest.importorskip("torch")
    jax = pytest.importorskip("jax")
    tf = pytest.importorskip("tensorflow")

    @lc.imle(noise_distribution=lc.noise.Gumbel(), nb_samples=3)
    def solver(theta):
        u = np.asarray(theta.detach() if hasattr(theta, "detach") else theta)
        z = np.stack([top(x) for x in u])
        return torch.tensor(z) if isinstance(theta, torch.Tensor) else z

    assert solver(torch.tensor(THETA)).shape == (9, 6)
    assert solver(jax.numpy.asarray(THETA), key=jax.random.key(0)).shape == (9, 6)
    assert solver(tf.constant(THETA)).shape == (9, 6)
    g = jax.jit(jax.grad(lambda t: (solver(t, key=jax.random.key(0)) @ W).sum()))(jax.numpy.asarray(THETA))
    assert np.isfinite(g).all() and g.any()
    with pytest.raises(errors.OptionError, match="tensor"):
        solver([1.0])
