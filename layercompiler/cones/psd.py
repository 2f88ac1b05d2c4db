"""The cone of positive semidefinite matrices in svec coordinates: column-major lower triangle, off-diagonals times sqrt 2."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from layercompiler.cones.base import Cone, Expansion, Projection, dense_expansion


@dataclass(frozen=True)
class PSD(Cone):
    """Positive semidefinite matrices of an order; dim = order (order + 1) / 2."""

    order: int
    name = "psd"

    @cached_property
    def dim(self) -> int:  # type: ignore[override]
        """Rows of one cone."""
        return self.order * (self.order + 1) // 2

    @cached_property
    def expansion(self) -> Expansion:
        """T = U sqrt(beta) dense, N = -(1 - beta)."""
        return dense_expansion(self.dim)

    def project_dual(self, v: np.ndarray) -> Projection:
        """Clip the eigenvalues; the cone is self-dual."""
        return _PSDProjection(v, self.order)


class _PSDProjection(Projection):
    def __init__(self, v: np.ndarray, order: int) -> None:
        self.v, self.order = v, order
        M = matrix(v, order)
        bad = ~np.isfinite(M).all(axis=(-2, -1))
        if bad.any():
            M = np.where(bad[..., None, None], 0.0, M)
        self.w, self.Q = np.linalg.eigh(M)
        if bad.any():
            self.w = np.where(bad[..., None], np.nan, self.w)
        # The smaller side is formed, the other follows by Moreau, so that neither cancels.
        positive = np.maximum(self.w, 0.0)
        self.y = vector(np.matmul(self.Q * positive[..., None, :], self.Q.swapaxes(-1, -2)), order)

    @property
    def smooth(self) -> np.ndarray:
        size = np.abs(self.w).max(axis=-1, initial=0.0)
        return np.abs(self.w).min(axis=-1, initial=np.inf) > 1e-10 * np.maximum(size, 1e-300)

    @cached_property
    def _ratio(self) -> np.ndarray:
        """(..., k, k) first divided differences of max(w, 0)."""
        positive, size = np.maximum(self.w, 0.0), np.abs(self.w)
        total = size[..., :, None] + size[..., None, :]
        both = positive[..., :, None] + positive[..., None, :]
        return np.where(total > 0, both / np.where(total > 0, total, 1.0), 0.5)

    @cached_property
    def beta(self) -> np.ndarray:
        """(B, count, dim) eigenvalues of the derivative in svec order."""
        rows, cols, _ = index(self.order)
        return self._ratio[..., rows, cols]

    def rotate(self, u: np.ndarray) -> np.ndarray:
        """svec(Q'MQ) of svec(M)."""
        return vector(self.Q.swapaxes(-1, -2) @ matrix(u, self.order) @ self.Q, self.order)

    def unrotate(self, u: np.ndarray) -> np.ndarray:
        """svec(QMQ') of svec(M)."""
        return vector(self.Q @ matrix(u, self.order) @ self.Q.swapaxes(-1, -2), self.order)

    def apply(self, u: np.ndarray) -> np.ndarray:
        return self.unrotate(self.beta * self.rotate(u))

    def second(self, u: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Second-order Daleckii-Krein: sum over l of f[i, l, j] (A_il B_lj + B_il A_lj)."""
        A, B = matrix(self.rotate(u), self.order), matrix(self.rotate(w), self.order)
        f = _second_differences(self.w, self._ratio)
        C = np.einsum("...ilj,...il,...lj->...ij", f, A, B)
        return self.unrotate(vector(C + C.swapaxes(-1, -2), self.order))

    def expansion_values(self) -> tuple[np.ndarray, np.ndarray]:
        identity = np.eye(self.beta.shape[-1])
        basis = vector(self.Q[..., None, :, :] @ matrix(identity, self.order) @ self.Q.swapaxes(-1, -2)[..., None, :, :], self.order)
        T = basis.swapaxes(-1, -2) * np.sqrt(self.beta)[..., None, :]
        return T.reshape(*T.shape[:-2], -1), self.beta - 1.0


def _second_differences(w: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """(..., i, l, j) second divided differences of max(., 0): (f[i, l] - f[l, j]) / (w_i - w_j), stable for equal eigenvalues.

    Equal signs give zero; with one sign apart, f[i, l, j] = p / ((p - n)(p - n')) for one positive p and two negative ones,
    and -n / ((p - n)(p' - n)) for two positive ones and one negative n.
    """
    a, b, c = w[..., :, None, None], w[..., None, :, None], w[..., None, None, :]
    count = (a > 0).astype(int) + (b > 0) + (c > 0)
    total = a + b + c
    high, low = np.maximum(np.maximum(a, b), c), np.minimum(np.minimum(a, b), c)
    mid = total - high - low
    mid = np.where((a >= np.minimum(b, c)) & (a <= np.maximum(b, c)), a, np.where((b >= np.minimum(a, c)) & (b <= np.maximum(a, c)), b, c))
    with np.errstate(all="ignore"):
        one = high / ((high - low) * (high - mid))
        two = -low / ((high - low) * (mid - low))
    out = np.where(count == 1, one, np.where(count == 2, two, 0.0))
    return np.where(np.isfinite(out), out, 0.0)


@lru_cache(maxsize=128)
def index(order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, cols, weights) of svec: entries row >= col by column, sqrt 2 off the diagonal."""
    cols, rows = np.triu_indices(order)
    return rows, cols, np.where(rows == cols, 1.0, np.sqrt(2.0))


def matrix(u: np.ndarray, order: int) -> np.ndarray:
    """Symmetric matrices (..., order, order) of svec vectors (..., dim)."""
    rows, cols, weights = index(order)
    M = np.empty((*u.shape[:-1], order, order))
    M[..., rows, cols] = M[..., cols, rows] = u / weights
    return M


def vector(M: np.ndarray, order: int) -> np.ndarray:
    """svec of symmetric matrices."""
    rows, cols, weights = index(order)
    return M[..., rows, cols] * weights
