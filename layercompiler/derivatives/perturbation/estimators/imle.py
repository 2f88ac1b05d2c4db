"""Implicit maximum likelihood estimation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from layercompiler.derivatives.perturbation.estimators.base import Draw, Estimator, Oracle, estimators, largest
from layercompiler.errors import OptionError


@estimators.register
@dataclass(frozen=True)
class IMLE(Estimator):
    """Implicit maximum likelihood estimation: the gradient is a difference of solutions at the scores and at target scores.

    With noise e, temperatures T and T', target scores u' = alpha u - lambda dy and z(u) = argmax <u, z>:

        forward:  (z(u + T e) - z(u' + T' e)) / lambda        central:  (z(u'_- + T' e) - z(u'_+ + T' e)) / (2 lambda)

    with u'_+ and u'_- at -lambda and +lambda. Central differences cost two solves more per sample instead of one; they
    halve the bias.

    Args:
        step: Step lambda; its meaning is set by `scaling`.
        difference: "central" or "forward".
        alpha: Weight of the scores in the target.
        target_temperature: Temperature T' of the noise at the target; None for that of the samples.
        scaling: "instance" moves the scores of each instance by at most `step` in any entry (lambda = step / max |dy|), so the
            estimate is proportional to dy and does not depend on how the loss is reduced over the batch. "raw" takes lambda = step
            and divides by it (PyEPO, blackbox-backprop). "torch-imle" takes lambda = step and does not divide, and averages over the
            samples even where all of them are returned.

    Source:
        Niepert, Minervini, Franceschi 2021, section 3; Minervini, Franceschi, Niepert 2023 for central differences.
    """

    step: float = 1.0
    difference: str = "central"
    alpha: float = 1.0
    target_temperature: float | None = None
    scaling: str = "instance"

    name: ClassVar[str] = "imle"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.step > 0:
            raise OptionError("the step must be positive", expected="a number > 0", got=repr(self.step))
        if self.difference not in ("central", "forward"):
            raise OptionError("unknown difference", expected="'central' or 'forward'", got=repr(self.difference))
        if self.scaling not in ("instance", "raw", "torch-imle"):
            raise OptionError("unknown scaling", expected="'instance', 'raw' or 'torch-imle'", got=repr(self.scaling))

    def pull(self, scores: np.ndarray, draw: Draw, cotangents: np.ndarray, oracle: Oracle) -> np.ndarray:
        """See `Estimator.pull`."""
        step = self.step / largest(cotangents) if self.scaling == "instance" else np.full((len(scores), 1, 1), self.step)
        difference, scale = self.differences(scores, draw, cotangents, step, oracle)
        if self.scaling == "torch-imle":
            return difference.mean(axis=1)
        return self.combined(difference) / (scale * step[:, 0])

    def differences(
        self, scores: np.ndarray, draw: Draw, cotangents: np.ndarray, step: np.ndarray, oracle: Oracle
    ) -> tuple[np.ndarray, float]:
        """Differences of solutions (B, S, d) for steps (B, 1, 1), and the number of steps they span."""
        count, _, size = draw.solutions.shape
        temperature = self.temperature if self.target_temperature is None else self.target_temperature
        base = scores[:, None] if self.alpha == 1.0 else self.alpha * scores[:, None]
        if draw.noise.shape[2]:
            base = base + (draw.noise if temperature == 1.0 else temperature * draw.noise)
        move = step * cotangents
        width = np.broadcast_shapes(base.shape, move.shape)[1]
        if self.difference == "forward":
            found = oracle((base - move).reshape(-1, size)).reshape(count, width, size)
            return draw.solutions - found, 1.0
        target = np.empty((count, 2, width, size))
        np.add(base, move, out=target[:, 0])
        np.subtract(base, move, out=target[:, 1])
        found = oracle(target.reshape(-1, size)).reshape(count, 2, width, size)
        return found[:, 0] - found[:, 1], 2.0
