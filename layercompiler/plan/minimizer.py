"""The answer of a least-squares solve: a minimizer of each instance, and what happened on the way there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layercompiler.status import Status


@dataclass(frozen=True)
class LeastSquaresInfo:
    """Per-instance facts; arrays of the batch shape.

    Attributes:
        status: `Status` codes: CONVERGED, ITERATION_LIMIT, STALLED, FAILED, INDEFINITE, NONFINITE_INPUT.
        residual: Largest cosine between the residual and a column of the Jacobian: the gradient without units.
        gradient: Largest absolute component of the gradient.
        cost: Value of the objective, 1/2 sum rho(||W r||^2).
        iterations: Steps tried.
        history: (steps, batch...) cost before every step, or None where no callback was given.
    """

    status: np.ndarray
    residual: np.ndarray
    gradient: np.ndarray
    cost: np.ndarray
    iterations: np.ndarray
    history: np.ndarray | None = field(default=None, repr=False)

    @property
    def ok(self) -> np.ndarray:
        """True where the instance converged."""
        return self.status == Status.SOLVED


@dataclass(frozen=True)
class LeastSquaresSolution:
    """The answer of `solve`.

    Attributes:
        outputs: One tensor per output, (batch..., *shape); gradients flow through them.
        values: Outputs by name.
        value: Optimal value of the problem as the user wrote it.
        info: What happened to each instance.
    """

    outputs: tuple[Any, ...]
    values: Mapping[str, Any]
    value: Any
    info: LeastSquaresInfo

    @property
    def status(self) -> np.ndarray:
        """`Status` codes, batch shape."""
        return self.info.status

    @property
    def residual(self) -> np.ndarray:
        """Relative size of the gradient, batch shape."""
        return self.info.residual
