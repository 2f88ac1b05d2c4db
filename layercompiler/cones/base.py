"""What a cone is: its dimension, the projection onto its dual with derivatives, and its place in the linear system."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np

KINK = 1e-10  # distance, relative to |v|, within which a point counts as being at a kink of the projection


@dataclass(frozen=True)
class Expansion:
    """Fixed pattern of one cone's factors T and N in the linear system of the derivative.

    Attributes:
        T_rows: Cone row of each entry of T; `T_cols` its unknown.
        T_cols: See `T_rows`.
        N_rows: Upper-triangle row of each entry of N; `N_cols` its column.
        N_cols: See `N_rows`.
        signs: Expected pivot sign of each unknown, int8.
    """

    T_rows: np.ndarray
    T_cols: np.ndarray
    N_rows: np.ndarray
    N_cols: np.ndarray
    signs: np.ndarray

    @cached_property
    def size(self) -> int:
        """Number of unknowns of one cone."""
        return len(self.signs)


def dense_expansion(dim: int) -> Expansion:
    """T dense, N diagonal: for cones whose derivative has a small dense eigenbasis."""
    rows, cols = np.divmod(np.arange(dim * dim), dim)
    diagonal = np.arange(dim)
    return Expansion(rows, cols, diagonal, diagonal, -np.ones(dim, np.int8))


class Cone(ABC):
    """A closed convex cone K of dimension `dim`; instances are frozen, hashable and picklable."""

    name: str
    dim: int

    @property
    @abstractmethod
    def expansion(self) -> Expansion:
        """Pattern of the factors in the linear system."""

    @abstractmethod
    def project_dual(self, v: np.ndarray) -> Projection:
        """Project v (B, count, dim) onto the dual cone K*."""


class Projection(ABC):
    """The projection onto K* at v, and what is differentiated of it.

    Attributes:
        v: (B, count, dim).
        y: (B, count, dim), Proj_{K*}(v), to rounding relative to |v|; NaN where v holds one.
    """

    v: np.ndarray
    y: np.ndarray

    @property
    @abstractmethod
    def smooth(self) -> np.ndarray:
        """(B, count) bool, False within a relative `KINK` of a kink, and where |v| is below `KINK`."""

    @abstractmethod
    def apply(self, u: np.ndarray) -> np.ndarray:
        """D u for u (..., B, count, dim)."""

    @abstractmethod
    def second(self, u: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Second derivative D^2 Proj[u, w], (B, count, dim)."""

    @abstractmethod
    def expansion_values(self) -> tuple[np.ndarray, np.ndarray]:
        """(T, N) on the patterns of the expansion, (B, count, nnz) each."""
