"""Sparsity patterns of batched matrices, and the segmented sums their products need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_DENSE_SHARE = 0.2  # above this density, or for tiny patterns, one dense product beats a gather and a segmented sum


@dataclass(frozen=True)
class Pattern:
    """A COO pattern with what its products need, made once."""

    rows: np.ndarray
    cols: np.ndarray
    shape: tuple[int, int]

    @cached_property
    def dense(self) -> bool:
        """Whether products go through a dense matrix."""
        total = self.shape[0] * self.shape[1]
        return total <= 4096 or (len(self.rows) > _DENSE_SHARE * total and total <= 250_000)

    @cached_property
    def _by_row(self) -> Segments:
        return Segments.of(self.rows, self.shape[0])

    @cached_property
    def _by_col(self) -> Segments:
        return Segments.of(self.cols, self.shape[1])

    def full(self, values: np.ndarray) -> np.ndarray:
        """Dense (B, rows, cols) from entry values (B, nnz)."""
        out = np.zeros((len(values), *self.shape))
        out[:, self.rows, self.cols] = values
        return out

    def product(self, values: np.ndarray, x: np.ndarray) -> np.ndarray:
        """M x for entry values (1 or B, nnz) and x (B, cols)."""
        return self._by_row.sum(values * x[:, self.cols])

    def transposed(self, values: np.ndarray, y: np.ndarray) -> np.ndarray:
        """M'y for entry values (1 or B, nnz) and y (B, rows)."""
        return self._by_col.sum(values * y[:, self.rows])


@dataclass(frozen=True)
class Segments:
    """Sums of entries that share a target: out[:, t] = sum of terms[:, e] over entries e with target t."""

    order: np.ndarray | None
    starts: np.ndarray
    targets: np.ndarray
    size: int
    simple: bool

    @classmethod
    def of(cls, target: np.ndarray, size: int) -> Segments:
        """Plan the sums for the target of each entry."""
        order = np.argsort(target, kind="stable")
        ordered = target[order]
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        identity = bool(np.array_equal(order, np.arange(len(order))))
        return cls(None if identity else order, starts, ordered[starts], size, len(starts) == len(target))

    def sum(self, terms: np.ndarray) -> np.ndarray:
        """(B, entries) to (B, size)."""
        if len(self.starts) == 0:
            return np.zeros((len(terms), self.size))
        terms = terms if self.order is None else terms[:, self.order]
        sums = terms if self.simple else np.add.reduceat(terms, self.starts, axis=1)
        if len(self.targets) == self.size:
            return sums
        out = np.zeros((len(terms), self.size))
        out[:, self.targets] = sums
        return out
