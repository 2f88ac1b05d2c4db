"""What a named oracle is: an exact, batched solver of one family of problems, vectorised over the instances."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from layercompiler.errors import OptionError, ShapeError
from layercompiler.registry import Registry


class NamedOracle(ABC):
    """An exact solver of argmin (or argmax) <values, z> for a batch of values.

    A new oracle is one file with a frozen dataclass that defines `shape` and `solve`, and is registered with `@oracles.register`.

    Attributes:
        name: The name in reports.
        sense: "min" or "max".
    """

    name: ClassVar[str]
    sense: ClassVar[str] = "min"

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the values, and of a solution, of one instance."""

    @abstractmethod
    def solve(self, values: np.ndarray) -> np.ndarray:
        """Solutions (N, d), float64, for finite values (N, d), float64."""

    def equalities(self) -> Any | None:
        """A dense or sparse matrix E such that E z is the same for all solutions z, or None."""
        return None

    def __call__(self, values: Any) -> np.ndarray:
        """Solve for values (..., *shape); the solutions have the same shape."""
        array = np.asarray(values, dtype=float)
        k = len(self.shape)
        if array.shape[array.ndim - k :] != self.shape:
            raise ShapeError(f"the values of {self.name} have the wrong shape", expected=f"(..., {self.shape})", got=str(array.shape))
        return self.solve(np.ascontiguousarray(array.reshape(-1, int(np.prod(self.shape))))).reshape(array.shape)


oracles: Registry[NamedOracle] = Registry(
    "oracle", __package__ or "", ("assignment", "dag_path", "grid_path", "knapsack", "ranking", "spanning_tree", "top_k", "tour")
)


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number in a range.

    Raises:
        OptionError: It is not.
    """
    if isinstance(value, bool) or int(value) != value or value < least or (most is not None and value > most):
        expected = f"a whole number >= {least}" + (f" and <= {most}" if most is not None else "")
        raise OptionError(f"{name} is out of range", expected=expected, got=repr(value))
    return int(value)
