"""Products with the batched matrices P, A and A' of one structure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercompiler.programs.cone import Data, Structure
from layercompiler.programs.pattern import Pattern


@dataclass(frozen=True)
class Products:
    """P x, A x and A'y for the numbers of one batch."""

    P_pattern: Pattern
    A_pattern: Pattern
    P_values: np.ndarray
    A_values: np.ndarray
    AT_values: np.ndarray

    @classmethod
    def of(cls, structure: Structure, data: Data) -> Products:
        """Bind the patterns of a structure to numbers."""
        P_pattern, A_pattern = structure.P_pattern, structure.A_pattern
        P = data.P[:, structure.P_mirror]
        A = A_pattern.full(data.A) if A_pattern.dense else data.A
        # The transpose is stored: a product by rows of a contiguous matrix gives the same bits wherever an instance sits in its batch.
        AT = np.ascontiguousarray(A.swapaxes(-1, -2)) if A_pattern.dense else A
        return cls(P_pattern, A_pattern, P_pattern.full(P) if P_pattern.dense else P, A, AT)

    def take(self, index: np.ndarray) -> Products:
        """The instances `index`."""
        pick = lambda a: a if len(a) == 1 else a[index]  # noqa: E731
        return Products(self.P_pattern, self.A_pattern, pick(self.P_values), pick(self.A_values), pick(self.AT_values))

    def P(self, x: np.ndarray) -> np.ndarray:
        """P x, (B, n)."""
        if len(self.P_pattern.rows) == 0:
            return np.zeros_like(x)
        return _matvec(self.P_values, x) if self.P_pattern.dense else self.P_pattern.product(self.P_values, x)

    def A(self, x: np.ndarray) -> np.ndarray:
        """A x, (B, m)."""
        return _matvec(self.A_values, x) if self.A_pattern.dense else self.A_pattern.product(self.A_values, x)

    def AT(self, y: np.ndarray) -> np.ndarray:
        """A'y, (B, n)."""
        if self.A_pattern.dense:
            return _matvec(self.AT_values, y)
        return self.A_pattern.transposed(self.A_values, y)


def _matvec(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.matmul(matrix, x[:, :, None])[:, :, 0]
