"""torch-imle's decorator for TensorFlow: the same arguments and formula."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
import tensorflow as tf

from layercompiler.derivatives.perturbation.noise import Noise, SumOfGamma, generator


class TargetDistribution:
    """Target parameters alpha theta - beta dy; subclasses may define another `params`."""

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        self.alpha, self.beta = float(alpha), float(beta)

    def params(self, theta: Any, dy: Any) -> Any:
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
        A function of theta (batch, ...) that returns samples (batch * nb_samples, ...).
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
        if executor is None:
            return np.asarray(solver(theta), theta.dtype)
        parts = np.array_split(theta, min(len(theta), 16))
        return np.concatenate([np.asarray(f.result(), theta.dtype) for f in [executor.submit(solver, p) for p in parts]])

    def solve(theta: Any) -> Any:
        found = tf.numpy_function(call, [theta], theta.dtype)
        found.set_shape(theta.shape)
        return found

    def flat(theta: Any) -> Any:
        return tf.reshape(theta, tf.concat([[-1], tf.shape(theta)[2:]], 0))

    @functools.wraps(solver)
    def wrapper(theta: Any) -> Any:
        theta = tf.convert_to_tensor(theta)
        shape = tf.concat([tf.shape(theta)[:1], [nb_samples], tf.shape(theta)[1:]], 0)
        if noise_distribution is None:
            noise = tf.zeros(shape, theta.dtype)
        else:
            source, kind = noise_distribution, theta.dtype.as_numpy_dtype
            words = tf.random.uniform((2,), 0, 2**62, tf.int64)
            noise = tf.numpy_function(lambda w, s: np.asarray(source.sample(generator(w), tuple(s)), kind), [words, shape], theta.dtype)
            noise.set_shape([theta.shape[0], nb_samples, *theta.shape[1:]])

        @tf.custom_gradient
        def draw(theta: Any) -> Any:
            z = solve(flat(theta[:, None] + input_noise_temperature * noise))

            def backward(dy: Any) -> Any:
                params = target.params(theta[:, None], tf.reshape(dy, shape)) + target_noise_temperature * noise
                return tf.reduce_mean(tf.reshape(z - solve(flat(params)), shape), axis=1)

            return z, backward

        return draw(theta)

    return wrapper
