"""A solver that is known by its answers only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.errors import NotAProblemError, OptionError


@dataclass(frozen=True)
class BlackBox:
    """A black-box solver: a function from a batch of costs to the batch of solutions that optimise <costs, z>.

        layer = lc.export(lc.BlackBox(solver, shape=(12, 12)), "torch", estimator=lc.IMLE())

    Args:
        solver: Called with costs (N, *shape), it returns solutions of the same shape; or a named oracle of `layercompiler.oracles`.
        sense: "min" where the solver minimises <costs, z>, "max" where it maximises; None for that of a named oracle, else "min".
        shape: Shape of one instance; None for the oracle's own, or for vectors of any length (the last axis).
        arrays: "numpy", or "torch", "jax" or "tensorflow" for a solver that takes and returns arrays of that framework.
        equalities: A matrix E (rows, size) such that E z is the same for all solutions z, for projections; None where none is known.
        name: Name of the parameter, for calls by name and for messages.

    Raises:
        NotAProblemError: The solver is not callable.
        OptionError: An unknown sense or kind of arrays.
    """

    solver: Callable[..., Any]
    sense: str | None = None
    shape: tuple[int, ...] | None = None
    arrays: str = "numpy"
    equalities: Any = None
    name: str = "costs"

    def __post_init__(self) -> None:
        if not callable(self.solver):
            raise NotAProblemError("the solver of a black box is not callable", expected="a function", got=type(self.solver).__name__)
        if self.sense not in (None, "min", "max"):
            raise OptionError("unknown sense", expected="'min' or 'max'", got=repr(self.sense))
        if self.arrays not in ("numpy", "torch", "jax", "tensorflow"):
            raise OptionError("unknown kind of arrays", expected="'numpy', 'torch', 'jax' or 'tensorflow'", got=repr(self.arrays))
        own = getattr(self.solver, "shape", None) if self.shape is None else self.shape
        object.__setattr__(self, "shape", None if own is None else tuple(int(k) for k in own))
        object.__setattr__(self, "sense", self.sense or getattr(self.solver, "sense", "min"))
        known = getattr(self.solver, "equalities", None)
        E = known() if self.equalities is None and callable(known) else self.equalities
        object.__setattr__(self, "equalities", None if E is None else np.asarray(E, dtype=float))

    @property
    def label(self) -> str:
        """What the solver calls itself."""
        return str(getattr(self.solver, "name", getattr(self.solver, "__name__", type(self.solver).__name__)))
