"""Factors of dense blocks, as a solver hands them over or a direct linear solve makes them: arrays and a way to solve with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from layercompiler.arrays import Arrays


@dataclass(frozen=True)
class Factor:
    """A factorisation of the Jacobian dF/dy (or one near it) of every instance.

    A solver that factorises hands one over (`attach(factor=...)`), and the derivative solves with it. It need not be that of the very
    last point: solutions are refined against the true Jacobian and their residual is checked, so a factor of a point nearby costs a few
    products more, never accuracy.

    Attributes:
        kind: "lu" (of `xp.lu_factor`: packed LU and pivots), "cholesky" (lower triangle L of LL'), "inverse", or "pinv".
        arrays: Its arrays, each with the batch dimensions in front.
        sign: -1 if the factorised matrix is -dF/dy.
    """

    kind: str
    arrays: tuple[Any, ...]
    sign: int = 1

    def solve(self, xp: Arrays, b: Any, transposed: bool = False) -> Any:
        """Solve J x = b, or J'x = b, for b (batch..., n), in the precision of the factor."""
        if xp.name != "numpy" and self.arrays[0].dtype != b.dtype:
            return xp.astype(self.solve(xp, xp.astype(b, self.arrays[0].dtype), transposed), b.dtype)
        column = b[..., None]
        if self.kind == "lu":
            LU, pivots = self.arrays
            x = xp.lu_solve(LU, pivots, column, transposed=transposed)
        elif self.kind == "cholesky":
            (L,) = self.arrays
            x = xp.solve_triangular(L, xp.solve_triangular(L, column), transposed=True)
        else:
            (P,) = self.arrays
            x = xp.matmul(xp.matrix_transpose(P) if transposed else P, column)
        return x[..., 0] * self.sign if self.sign < 0 else x[..., 0]


def lu(xp: Arrays, J: Any) -> Factor:
    """LU of (batch..., n, n)."""
    return Factor("lu", tuple(xp.lu_factor(J)))


def cholesky(xp: Arrays, J: Any, sign: int = 1) -> Factor:
    """Cholesky of symmetric positive definite (batch..., n, n), of -J if sign is -1."""
    return Factor("cholesky", (xp.linalg.cholesky(J if sign > 0 else -J),), sign)


def pinv(xp: Arrays, J: Any) -> Factor:
    """Pseudo-inverse of (batch..., n, n): minimum-norm solutions of singular systems."""
    u, s, vt = xp.linalg.svd(J, full_matrices=False)
    n = int(J.shape[-1])
    cut = s > s[..., :1] * (n * 1e-13)
    inverse = xp.where(cut, 1.0 / xp.where(cut, s, xp.ones_like(s)), xp.zeros_like(s))
    return Factor("pinv", (xp.matmul(xp.matrix_transpose(vt) * inverse[..., None, :], xp.matrix_transpose(u)),))
