"""Products with the batched matrices P, A and A' of one structure."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from layercompiler.programs.cone import Data, Structure


class Products:
    """P x, A x and A'y for the numbers of one batch; what a product needs is made when it is first asked for."""

    def __init__(self, structure: Structure, data: Data) -> None:
        self.structure, self.data = structure, data
        self.P_pattern, self.A_pattern = structure.P_pattern, structure.A_pattern

    @cached_property
    def P_values(self) -> np.ndarray:
        """P in full where its pattern is dense, else the entries of both triangles."""
        P = self.data.P[:, self.structure.P_mirror]
        return self.P_pattern.full(P) if self.P_pattern.dense else P

    @cached_property
    def A_values(self) -> np.ndarray:
        """A in full where its pattern is dense, else its entries."""
        return self.A_pattern.full(self.data.A) if self.A_pattern.dense else self.data.A

    @cached_property
    def AT_values(self) -> np.ndarray:
        """The transpose, stored: a product by rows of a contiguous matrix gives the same bits wherever an instance sits in its batch."""
        A = self.A_values
        return np.ascontiguousarray(A.swapaxes(-1, -2)) if self.A_pattern.dense else A

    @classmethod
    def of(cls, structure: Structure, data: Data) -> Products:
        """Bind the patterns of a structure to numbers."""
        return cls(structure, data)

    def take(self, index: np.ndarray) -> Products:
        """The instances `index`."""
        part = Products(self.structure, self.data.take(index))
        for name in ("P_values", "A_values", "AT_values"):
            if name in self.__dict__:
                a = self.__dict__[name]
                part.__dict__[name] = a if len(a) == 1 else a[index]
        return part

    def P(self, x: np.ndarray) -> np.ndarray:
        """P x, (B, n)."""
        if len(self.P_pattern.rows) == 0:
            return np.zeros_like(x)
        return _matvec(self.P_values, x) if self.P_pattern.dense else self.P_pattern.product(self.P_values, x)

    def P_terms(self, x: np.ndarray) -> np.ndarray:
        """|x|'|P||x|, (B,): the size of the terms of x'P x."""
        x, P = np.abs(x), np.abs(self.P_values)
        return np.sum(x * (_matvec(P, x) if self.P_pattern.dense else self.P_pattern.product(P, x)), axis=1)

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
