"""Vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from layercompiler.manifolds.base import Manifold


class Vectors(Manifold):
    """Vectors of one length."""

    name = "euclidean"

    def __init__(self, size: int) -> None:
        self.ambient = self.dof = size

    def identity(self) -> np.ndarray:
        """Zero."""
        return np.zeros(self.ambient)

    def retract(self, xp: Any, x: Any, v: Any) -> Any:
        """X + v."""
        return x + v

    def tangent(self, xp: Any, x: Any, v: Any) -> Any:
        """V."""
        return v

    def local(self, xp: Any, x: Any, y: Any) -> Any:
        """Y - x."""
        return y - x
