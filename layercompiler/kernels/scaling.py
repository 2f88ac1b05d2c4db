"""Equilibration by powers of two of a whole batch, in one pass; `layercompiler.derivatives.scaling` states what is done."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layercompiler.kernels.library import address
from layercompiler.kernels.maps import Handle, contiguous, integers, pointers, strides


class Equilibration(Handle):
    """The norms of one structure.

    Args:
        n: Variables.
        P: Rows and columns of the entries of P's upper triangle; likewise `A`.
        A: See `P`.
        cones: Number of groups of rows that share a factor, with the group of each row (`cone_of_row`, (m,)).
        cone_of_row: See `cones`.
    """

    def __init__(
        self, n: int, P: tuple[np.ndarray, np.ndarray], A: tuple[np.ndarray, np.ndarray], cones: int, cone_of_row: np.ndarray
    ) -> None:
        self.n, self.m = n, len(cone_of_row)
        self.widths = (len(P[0]), n, len(A[0]), self.m)
        super().__init__(
            *("scaling", n, self.m, len(P[0]), integers(P[0]), integers(P[1]), len(A[0]), integers(A[0]), integers(A[1])),
            *(cones, integers(cone_of_row)),
        )

    def rough(self, data: Sequence[np.ndarray], batch: int, threads: int = 1) -> np.ndarray:
        """(B,) bool: instances of the data P, q, A, b (1 or B, ...) whose rows, columns, b or q are far from unit size."""
        data = [contiguous(a) for a in data]
        out = np.empty(batch, np.bool_)
        self.call("lc_scaling_rough", batch, pointers(data), strides(data), address(out), threads)
        return out

    def apply(self, data: Sequence[np.ndarray], rough: np.ndarray, threads: int = 1) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Scaled P, q, A, b (B, ...), and the factors of x, y, s, r_x, r_y; ones where an instance is not `rough`."""
        data, batch = [contiguous(a) for a in data], len(rough)
        scaled = [np.empty((batch, width)) for width in self.widths]
        factors = [np.empty((batch, width)) for width in (self.n, self.m, self.m, self.n, self.m)]
        rough = np.ascontiguousarray(rough, np.bool_)
        self.call("lc_scaling_apply", batch, pointers(data), strides(data), address(rough), pointers(scaled), pointers(factors), threads)
        return scaled, factors
