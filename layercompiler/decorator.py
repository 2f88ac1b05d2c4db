"""The decorator `imle` for solvers of any framework."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from layercompiler.errors import OptionError


def imle(function: Callable[..., Any] | None = None, **settings: Any) -> Any:
    """Make a black-box solver differentiable by I-MLE, with torch-imle's arguments and meaning, for torch, jax or TensorFlow.

        @lc.imle(target_distribution=TargetDistribution(alpha=1.0, beta=10.0), noise_distribution=lc.noise.SumOfGamma(k=5), nb_samples=10)
        def solver(theta): ...

    The framework is that of the tensors it is called with; `layercompiler.<framework>.imle.imle` documents the arguments.

    Args:
        function: A solver: theta (N, ...) to solutions (N, ...) that maximise <theta, z>.
        **settings: `target_distribution`, `noise_distribution`, `nb_samples`, `input_noise_temperature`, `target_noise_temperature`,
            `executor`.

    Returns:
        A function of theta (batch, ...) that returns samples (batch * nb_samples, ...).

    Raises:
        OptionError: Called with something else than a tensor of a known framework.
    """
    if function is None:
        return functools.partial(imle, **settings)
    made: dict[str, Any] = {}

    @functools.wraps(function)
    def wrapper(theta: Any, *args: Any, **named: Any) -> Any:
        package = next((m for m in (t.__module__.split(".")[0] for t in type(theta).__mro__) if m in _PACKAGES), "")
        framework = _PACKAGES.get(package)
        if framework is None:
            raise OptionError(
                "imle is called with something else than a tensor",
                expected="a tensor of torch, jax or tensorflow",
                got=type(theta).__name__,
            )
        if framework not in made:
            made[framework] = importlib.import_module(f"layercompiler.{framework}.imle").imle(function, **settings)
        return made[framework](theta, *args, **named)

    return wrapper


_PACKAGES = {"torch": "torch", "jax": "jax", "jaxlib": "jax", "tensorflow": "tensorflow"}
