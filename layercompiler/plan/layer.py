"""The layer without a framework: numpy in, numpy out."""

from __future__ import annotations

from typing import Any

import numpy as np

from layercompiler.plan.compiled import CompiledProblem
from layercompiler.status import Solution


class Layer:
    """A compiled problem as a function of numpy arrays; outputs have the widest floating type of the inputs."""

    def __init__(self, compiled: CompiledProblem) -> None:
        self.compiled = compiled

    def __call__(self, *args: Any, **named: Any) -> tuple[np.ndarray, ...]:
        """Solve for one array per parameter, (batch..., *shape), by position or name; a tuple of arrays, one per output."""
        arrays = self.compiled.arguments(args, named)
        outputs = self.compiled.evaluate(arrays).outputs
        dtype = result_type(arrays)
        return tuple(o.astype(dtype, copy=False) for o in outputs)

    def solve(self, *args: Any, warm_start: Any = None, **named: Any) -> Solution:
        """Solve and return values, duals, status and residuals."""
        return self.compiled.solve(*args, warm_start=warm_start, **named)

    def report(self) -> str:
        """What the compiler did, pass by pass."""
        return self.compiled.report()

    def __repr__(self) -> str:
        return f"Layer[numpy]({self.compiled.describe()})"


def result_type(arrays: Any) -> np.dtype:
    """The floating type of the outputs: the widest among floating inputs, float64 when there are none."""
    kinds = [a.dtype for a in map(np.asarray, arrays) if a.dtype.kind == "f"]
    return np.result_type(*kinds) if kinds else np.dtype(float)
