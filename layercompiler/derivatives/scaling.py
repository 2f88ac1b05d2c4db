"""Equilibration by powers of two, per instance and only where it is needed, so that it costs no rounding at all.

With diagonal D, E (constant over each cone that is not a product of rays) and scalars kappa, sigma the scaled program has
x^ = kappa D^-1 x, s^ = kappa E s, y^ = sigma kappa E^-1 y and data sigma D P D, sigma kappa D q, E A D, kappa E b.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from layercompiler import kernels
from layercompiler.programs.cone import Data, Structure
from layercompiler.programs.pattern import Segments

_MOST = 2.0**20  # one row against another can differ by 1e12
_CALM = 64.0  # norms within [1/_CALM, _CALM] are left alone


@dataclass(frozen=True)
class Scaling:
    """Scale factors of a batch, or None for an instance-free identity.

    Attributes:
        x: (B, n), x = x * x^; likewise `y` (B, m), y = y * y^ and `s` (B, m), s = s * s^.
        r_x: (B, n), factor of the stationarity residual; `r_y` (B, m), of the feasibility residual.
    """

    x: np.ndarray
    y: np.ndarray
    s: np.ndarray
    r_x: np.ndarray
    r_y: np.ndarray

    def take(self, index: np.ndarray) -> Scaling:
        """The instances `index`."""
        return Scaling(self.x[index], self.y[index], self.s[index], self.r_x[index], self.r_y[index])


class Equilibrator:
    """Plans the norms of one structure."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        cone_of_row, at = [], 0
        for cone, count in structure.cones.blocks:
            each = 1 if cone.name in ("zero", "nonnegative") else cone.dim
            cone_of_row.append(at + np.arange(count * cone.dim) // each)
            at += count * cone.dim // each
        self.cone_of_row = np.concatenate(cone_of_row).astype(np.intp) if cone_of_row else np.zeros(0, np.intp)
        self.cones = at
        self.row_max = _Maxima(self.cone_of_row[structure.A_rows], at)
        self.col_max = _Maxima(structure.A_cols, structure.n)
        off = structure.P_off
        self.P_entries = np.concatenate([np.arange(len(structure.P_rows)), off])
        self.P_max = _Maxima(np.concatenate([structure.P_cols, structure.P_rows[off]]), structure.n)

    def __call__(self, data: Data) -> tuple[Data, Scaling | None]:
        """Scaled data and the factors; None, and the data as they are, where every instance is calm."""
        if self.kernel is None or not data.batch:
            return self.in_arrays(data)
        rough = self.kernel.rough((data.P, data.q, data.A, data.b), data.batch)
        return self.scale(data, rough) if rough.any() else (data, None)

    @cached_property
    def kernel(self) -> kernels.Equilibration | None:
        """The compiled norms, where the kernels were built."""
        s = self.structure
        if not kernels.available():
            return None
        return kernels.Equilibration(s.n, (s.P_rows, s.P_cols), (s.A_rows, s.A_cols), self.cones, self.cone_of_row)

    def scale(self, data: Data, rough: np.ndarray) -> tuple[Data, Scaling]:
        """Scaled data and the factors, by the kernels, for the instances that are `rough`."""
        assert self.kernel is not None
        (P, q, A, b), factors = self.kernel.apply((data.P, data.q, data.A, data.b), rough)
        return Data(P, q, data.d, A, b), Scaling(*factors)

    def in_arrays(self, data: Data) -> tuple[Data, Scaling | None]:
        """The same in arrays, where the kernels were not built."""
        with np.errstate(all="ignore"):
            rough = self._rough(data)
            if not rough.any():
                return data, None
            B = data.batch
            s = self.structure
            D, E = np.ones((B, s.n)), np.ones((B, s.m))
            A, P = np.broadcast_to(data.A, (B, data.A.shape[1])), np.broadcast_to(data.P, (B, data.P.shape[1]))
            A_hat, P_hat = A, P
            for _ in range(4):
                E *= _power(self.row_max(A_hat), 0.5)[:, self.cone_of_row]
                D *= _power(np.maximum(self.col_max(A_hat), self.P_max(P_hat[:, self.P_entries])), 0.5)
                # Rows and columns of rounding noise stay small: a program that only they make feasible is infeasible.
                D, E = np.clip(D, 1 / _MOST, _MOST), np.clip(E, 1 / _MOST, _MOST)
                D[~rough], E[~rough] = 1.0, 1.0
                A_hat = A * E[:, s.A_rows] * D[:, s.A_cols]
                P_hat = P * D[:, s.P_rows] * D[:, s.P_cols]
            kappa = _power(np.abs(data.b * E).max(axis=1, initial=0.0), 1.0)[:, None]
            sigma = _power(np.abs(data.q * D * kappa).max(axis=1, initial=0.0), 1.0)[:, None]
            kappa[~rough], sigma[~rough] = 1.0, 1.0
            scaled = Data(P_hat * sigma, data.q * D * (sigma * kappa), data.d, A_hat, data.b * E * kappa)
            return scaled, Scaling(D / kappa, E / (sigma * kappa), 1.0 / (E * kappa), sigma * kappa * D, kappa * E)

    def _rough(self, data: Data) -> np.ndarray:
        """(B,) bool: instances whose rows, columns, b or q are far from unit size."""
        rows, cols = self.row_max(data.A), self.col_max(data.A)
        if data.P.shape[1]:
            cols = np.maximum(cols, self.P_max(data.P[:, self.P_entries]))
        parts = (rows, cols, np.abs(data.b).max(axis=1, initial=0.0)[:, None], np.abs(data.q).max(axis=1, initial=0.0)[:, None])
        rough = np.zeros(data.batch, bool)
        for norms in parts:
            rough |= ((norms > _CALM) | ((norms < 1 / _CALM) & (norms > 0))).any(axis=1)
        return rough


class _Maxima:
    """Largest absolute value over the entries of each target."""

    def __init__(self, target: np.ndarray, size: int) -> None:
        self.segments = Segments.of(target, size)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        g = self.segments
        out = np.zeros((len(values), g.size))
        if len(g.starts):
            ordered = np.abs(values if g.order is None else values[:, g.order])
            out[:, g.targets] = ordered if g.simple else np.maximum.reduceat(ordered, g.starts, axis=1)
        return out


def _power(norm: np.ndarray, exponent: float) -> np.ndarray:
    """The power of two nearest to norm^-exponent; 1 where the norm is calm, zero or not finite."""
    usable = np.isfinite(norm) & (norm > 0)
    log = np.log2(np.where(usable, norm, 1.0))
    return np.where(usable & (np.abs(log) > 1), np.exp2(np.rint(-exponent * log)), 1.0)
