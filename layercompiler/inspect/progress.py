"""Callbacks for iterative solves: a line that tells how far a batch is, and the best values seen."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np


class Progress:
    """A line on a terminal that is written again after every step.

        layer.solve(y, callback=lc.inspect.Progress(total=100))

    Args:
        total: Most steps, for the bar.
        tolerance: Relative gradient below which an instance counts as done.
        stream: Where to write; standard error by default.
        every: Least seconds between two lines.
        then: Another callback, called after the line; the solve stops where it returns True.
    """

    def __init__(
        self,
        total: int = 100,
        tolerance: float = 1e-8,
        stream: TextIO | None = None,
        every: float = 0.1,
        then: Callable[..., Any] | None = None,
    ) -> None:
        self.total, self.tolerance, self.stream, self.every, self.then = total, tolerance, stream or sys.stderr, every, then
        self._last = -np.inf

    def __call__(self, step: int, cost: np.ndarray, gradient: np.ndarray, values: np.ndarray) -> Any:
        """Write the line: the arguments are those of a callback of `solve`."""
        done, now = int((gradient <= self.tolerance).sum()), time.monotonic()
        if now - self._last >= self.every or done == len(cost) or step >= self.total:
            self._last = now
            filled = round(20 * min(step / max(self.total, 1), 1.0))
            bar = "#" * filled + "." * (20 - filled)
            worst = float(np.max(gradient, initial=0.0))
            self.stream.write(f"\r[{bar}] step {step}/{self.total}, {done}/{len(cost)} converged, largest gradient {worst:.1e}")
            self.stream.flush()
        return self.then(step, cost, gradient, values) if self.then is not None else None


class Best:
    """Keeps the values of the lowest cost that each instance has seen; for Gauss-Newton, whose costs may rise.

    Attributes:
        cost: (B,) lowest cost, infinite before the first step.
        values: (B, numbers) the values there.
        step: (B,) after which step.
    """

    def __init__(self) -> None:
        self.cost, self.values, self.step = np.zeros(0), np.zeros((0, 0)), np.zeros(0, int)

    def __call__(self, step: int, cost: np.ndarray, gradient: np.ndarray, values: np.ndarray) -> None:
        """Compare with the best so far: the arguments are those of a callback of `solve`."""
        if not len(self.cost):
            self.cost, self.values, self.step = np.full(len(cost), np.inf), np.array(values), np.zeros(len(cost), int)
        better = cost < self.cost
        self.cost, self.step = np.where(better, cost, self.cost), np.where(better, step, self.step)
        self.values = np.where(better[:, None], values, self.values)
