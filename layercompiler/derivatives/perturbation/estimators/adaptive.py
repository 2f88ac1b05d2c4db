"""Adaptive I-MLE: the step follows from how sparse the gradients are."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.estimators.base import Draw, Oracle, estimators
from layercompiler.derivatives.perturbation.estimators.imle import IMLE
from layercompiler.errors import OptionError


class StepSize:
    """The relative step of an adaptive estimator, which follows the gradients: the one mutable thing among estimators.

    Args:
        value: First value of beta.

    Attributes:
        value: beta, the step relative to |u| / |dy|.
        nonzeros: Running mean of the number of nonzero entries per difference of solutions.
        seen: Updates so far.
    """

    def __init__(self, value: float = 1.0) -> None:
        self.value, self.nonzeros = float(value), 0.0
        self.seen = 0
        self._lock = threading.Lock()

    def update(self, nonzeros: float, target: float, rate: float, decay: float) -> None:
        """One step of adaptation towards `target` nonzero entries per difference."""
        with self._lock:
            self.seen += 1
            self.nonzeros = decay * self.nonzeros + (1.0 - decay) * nonzeros
            mean = self.nonzeros / (1.0 - decay**self.seen)
            self.value *= 1.0 + rate if mean < target else 1.0 / (1.0 + rate)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        return f"StepSize({self.value:.4g})"


@estimators.register
@dataclass(frozen=True)
class AdaptiveIMLE(IMLE):
    """I-MLE whose step lambda = beta |u| / |dy| grows while the differences of solutions have too few nonzeros, and shrinks otherwise.

    Args:
        target: Nonzero entries per difference of solutions to aim for.
        rate: Relative change of beta per backward pass. (The paper adds and subtracts; a factor does not depend on the scale.)
        decay: Of the running mean of the nonzeros.
        state: Holds beta. It changes in backward passes, so gradients depend on those before; copy the estimator with a fresh
            `StepSize` to start over. Under jit the update is a host effect of the backward pass.
        adapt: False keeps beta as it is.

    Source:
        Minervini, Franceschi, Niepert 2023, "Adaptive perturbation-based gradient estimation for discrete latent variable models".
    """

    target: float = 1.0
    rate: float = 0.02
    decay: float = 0.9
    state: StepSize = field(default_factory=StepSize, compare=False)
    adapt: bool = True

    name: ClassVar[str] = "adaptive_imle"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.target > 0 and self.rate > 0 and 0 <= self.decay < 1):
            got = f"{self.target}, {self.rate}, {self.decay}"
            raise OptionError("adaptive I-MLE needs target > 0, rate > 0 and 0 <= decay < 1", got=got)

    def pull(self, scores: np.ndarray, draw: Draw, cotangents: np.ndarray, oracle: Oracle) -> np.ndarray:
        """See `Estimator.pull`."""
        size = np.sqrt((cotangents**2).mean(axis=(1, 2), keepdims=True))
        length = np.sqrt((scores**2).mean(axis=1))[:, None, None]
        step = self.state.value * np.where(length > 0, length, 1.0) / np.where(size > 0, size, 1.0)
        difference, scale = self.differences(scores, draw, cotangents, step, oracle)
        if self.adapt and size.any():
            live = np.isfinite(difference).all(axis=(1, 2)) & (size[:, 0, 0] > 0)
            if live.any():
                nonzeros = float((np.abs(difference[live]) > 1e-9).sum(axis=2).mean())
                self.state.update(nonzeros, self.target, self.rate, self.decay)
        return self.combined(difference) / (scale * step[:, 0])
