"""What a kind of variable is: how it is stored, and how it moves along its tangent space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np


class Manifold(ABC):
    """Elements stored as vectors (..., ambient), moved by tangents (..., dof); functions of any arrays `xp`, batched over leading axes.

    Attributes:
        name: "euclidean", "SO2", "SE2", "SO3" or "SE3".
        ambient: Numbers that store one element.
        dof: Degrees of freedom, the length of a tangent.
    """

    name: str
    ambient: int
    dof: int

    @abstractmethod
    def identity(self) -> np.ndarray:
        """The neutral element, (ambient,)."""

    @abstractmethod
    def retract(self, xp: Any, x: Any, v: Any) -> Any:
        """X moved along v: x + v, or x exp(v)."""

    @abstractmethod
    def tangent(self, xp: Any, x: Any, v: Any) -> Any:
        """The velocity (..., ambient) of the stored numbers when x moves along v: the derivative of `retract` at v = 0, linear in v."""

    @abstractmethod
    def local(self, xp: Any, x: Any, y: Any) -> Any:
        """The tangent that moves x to y."""

    def normalize(self, xp: Any, x: Any) -> Any:
        """The element nearest to x, which rounding has moved off the manifold."""
        return x

    def invalid(self, xp: Any, x: Any) -> Any:
        """Where x (..., ambient) is no element at all, boolean (...)."""
        return xp.zeros_like(x[..., 0]) > 0

    def __repr__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), self.ambient))
