"""torch-imle's decorator with its arguments and meaning; switching is one import.

    from layercompiler.torch.imle import SumOfGammaNoiseDistribution, TargetDistribution, imle

Samples come back as torch-imle returns them, (batch * samples, ...), the samples of an instance side by side, and gradients are its
formula: mean over the samples of z(theta + e) - z(alpha theta - beta dy + e'), not divided by beta. The solver maximises <theta, z>.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layercompiler.derivatives.perturbation.noise import Noise, SumOfGamma, generator


class BaseTargetDistribution:
    """A rule for the parameters of the target; subclasses define `params`."""

    def params(self, theta: Tensor, dy: Tensor) -> Tensor:
        """Target parameters for theta and the gradient of the loss, both (batch * samples, ...)."""
        raise NotImplementedError


class TargetDistribution(BaseTargetDistribution):
    """Target parameters alpha theta - beta dy."""

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        self.alpha, self.beta = float(alpha), float(beta)

    def params(self, theta: Tensor, dy: Tensor) -> Tensor:
        """See `BaseTargetDistribution.params`."""
        return self.alpha * theta - self.beta * dy


class BaseNoiseDistribution:
    """A noise distribution; subclasses define `sample`."""

    def sample(self, shape: Any) -> Tensor:
        """A tensor of noise of a shape."""
        raise NotImplementedError


class SumOfGammaNoiseDistribution(BaseNoiseDistribution):
    """Sum-of-gamma noise; the exact distribution, drawn by inversion (`layercompiler.noise.SumOfGamma`), seeded by torch.manual_seed."""

    def __init__(self, k: float, nb_iterations: int = 10, device: Any = None) -> None:
        self.noise, self.device = SumOfGamma(k, nb_iterations), device

    def sample(self, shape: Any) -> Tensor:
        """See `BaseNoiseDistribution.sample`."""
        return _sample(self.noise, shape, self.device)


def _sample(noise: Noise, shape: Any, device: Any = None) -> Tensor:
    drawn = noise.sample(generator(torch.randint(2**62, (2,)).numpy()), tuple(shape))
    return torch.from_numpy(np.asarray(drawn)).to(dtype=torch.get_default_dtype(), device=device)


class _Estimate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, call: Callable[[Tensor], Tensor], noise: Tensor | None, settings: Any) -> Tensor:  # type: ignore[override]
        _, samples, temperature, _ = settings
        wide = theta.unsqueeze(1).expand(len(theta), samples, *theta.shape[1:])
        perturbed = wide if noise is None else wide + temperature * noise
        found = call(perturbed.reshape(-1, *theta.shape[1:])).detach()
        ctx.save_for_backward(theta, noise, found)
        ctx.call, ctx.settings = call, settings
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        theta, noise, found = ctx.saved_tensors
        target, samples, _, temperature = ctx.settings
        shape = (len(theta), samples, *theta.shape[1:])
        wide = theta.unsqueeze(1).expand(shape).reshape(dy.shape)  # what a target of the user's own may count on
        params = target.params(wide, dy).reshape(shape)
        params = params if noise is None else params + temperature * noise
        other = ctx.call(params.reshape(-1, *theta.shape[1:])).detach()
        return (found - other).reshape(shape).mean(dim=1).to(theta.dtype), None, None, None


def imle(
    function: Callable[[Tensor], Tensor] | None = None,
    target_distribution: BaseTargetDistribution | None = None,
    noise_distribution: BaseNoiseDistribution | Noise | None = None,
    nb_samples: int = 1,
    input_noise_temperature: float = 1.0,
    target_noise_temperature: float = 1.0,
    executor: Executor | None = None,
) -> Any:
    """Make a black-box solver differentiable by I-MLE, as torch-imle does; a decorator, or a function of the solver.

    Args:
        function: A solver of tensors: theta (N, ...) to solutions (N, ...), maximisers of <theta, z>.
        target_distribution: Rule for the target; None for alpha = beta = 1.
        noise_distribution: Noise, one of `layercompiler.noise` or with a `sample(shape)` of its own; None for none.
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
    solver = function
    target = target_distribution or TargetDistribution(1.0, 1.0)
    settings = (target, nb_samples, input_noise_temperature, target_noise_temperature)

    @functools.wraps(solver)
    def wrapper(theta: Tensor, *args: Any) -> Tensor:
        def call(values: Tensor) -> Tensor:
            if executor is None:
                return solver(values, *args)
            parts = [executor.submit(solver, part, *args) for part in values.chunk(min(len(values), 16))]
            return torch.cat([part.result() for part in parts])

        noise = None
        if noise_distribution is not None:
            shape = torch.Size((len(theta), nb_samples, *theta.shape[1:]))
            drawn = _sample(noise_distribution, shape) if isinstance(noise_distribution, Noise) else noise_distribution.sample(shape=shape)
            noise = drawn.to(dtype=theta.dtype, device=theta.device)
        return _Estimate.apply(theta, call, noise, settings)  # type: ignore[return-value]

    return wrapper
