"""torch-imle's decorator for jax: the same arguments and formula, with the noise drawn from a key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from layercompiler.derivatives.perturbation.noise import Noise, SumOfGamma, generator
from layercompiler.errors import OptionError


class TargetDistribution:
    """Target parameters alpha theta - beta dy; subclasses may define another `params`."""

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        self.alpha, self.beta = float(alpha), float(beta)

    def params(self, theta: jax.Array, dy: jax.Array) -> jax.Array:
        """Target parameters for theta (batch, 1, ...) and the gradient of the loss (batch, samples, ...)."""
        return self.alpha * theta - self.beta * dy


def SumOfGammaNoiseDistribution(k: float, nb_iterations: int = 10) -> SumOfGamma:
    """Sum-of-gamma noise under torch-imle's name."""
    return SumOfGamma(k, nb_iterations)


def imle(
    function: Callable[..., Any] | None = None,
    target_distribution: TargetDistribution | None = None,
    noise_distribution: Noise | None = None,
    nb_samples: int = 1,
    input_noise_temperature: float = 1.0,
    target_noise_temperature: float = 1.0,
    executor: Executor | None = None,
) -> Any:
    """Make a black-box solver differentiable by I-MLE; a decorator, or a function of the solver.

    Args:
        function: A solver of numpy arrays: theta (N, ...) to solutions (N, ...), maximisers of <theta, z>.
        target_distribution: Rule for the target; None for alpha = beta = 1.
        noise_distribution: Noise; None for none.
        nb_samples: Samples per instance.
        input_noise_temperature: Factor of the noise of the samples.
        target_noise_temperature: Factor of the same noise at the target.
        executor: Any `concurrent.futures.Executor` to run parts of a batch of solves in.

    Returns:
        A function of theta (batch, ...), and `key` where there is noise, that returns samples (batch * nb_samples, ...).
    """
    if function is None:
        return functools.partial(
            imle,
            target_distribution=target_distribution,
            noise_distribution=noise_distribution,
            nb_samples=nb_samples,
            input_noise_temperature=input_noise_temperature,
            target_noise_temperature=target_noise_temperature,
            executor=executor,
        )
    solver, target = function, target_distribution or TargetDistribution(1.0, 1.0)

    def call(theta: np.ndarray) -> np.ndarray:
        values = np.asarray(theta)
        if executor is None:
            return np.asarray(solver(values), values.dtype)
        parts = np.array_split(values, min(len(values), 16))
        return np.concatenate([np.asarray(f.result(), values.dtype) for f in [executor.submit(solver, p) for p in parts]])

    def solve(theta: jax.Array) -> jax.Array:
        return jax.pure_callback(call, jax.ShapeDtypeStruct(theta.shape, theta.dtype), theta, vmap_method="sequential")

    def flat(theta: jax.Array) -> jax.Array:
        return theta.reshape(-1, *theta.shape[2:])

    @jax.custom_vjp
    def draw(theta: jax.Array, noise: jax.Array) -> jax.Array:
        return solve(flat(theta[:, None] + input_noise_temperature * noise))

    def forward(theta: jax.Array, noise: jax.Array) -> tuple[jax.Array, Any]:
        z = draw(theta, noise)
        return z, (theta, noise, z)

    def backward(held: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        theta, noise, z = held
        params = target.params(theta[:, None], dy.reshape(noise.shape)) + target_noise_temperature * noise
        return (z - solve(flat(params))).reshape(noise.shape).mean(axis=1), jnp.zeros_like(noise)

    draw.defvjp(forward, backward)

    @functools.wraps(solver)
    def wrapper(theta: jax.Array, key: Any = None) -> jax.Array:
        theta = jnp.asarray(theta)
        shape = (len(theta), nb_samples, *theta.shape[1:])
        if noise_distribution is None:
            return draw(theta, jnp.zeros(shape, theta.dtype))
        if key is None:
            raise OptionError("the noise needs a key", expected="key=jax.random.key(...)", got="none")
        source = noise_distribution

        def sample(words: Any) -> np.ndarray:
            return np.asarray(source.sample(generator(np.asarray(words)), shape), theta.dtype)

        words = jax.random.bits(key, (2,), jnp.uint32)
        return draw(theta, jax.pure_callback(sample, jax.ShapeDtypeStruct(shape, theta.dtype), words, vmap_method="sequential"))

    return wrapper
