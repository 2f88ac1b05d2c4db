"""Whether a solution is one of many: a question about the program at a point, not about the matrix that differentiates it.

The solutions are the feasible x + d with P d = 0 along which no row that has a multiplier changes. With D the derivative of the
projection at v less a little, which counts rows without a multiplier (weakly active ones) as inactive, these d are null vectors of
P + A'D A: of the primal part alone, so that null vectors of the multipliers cannot hide them. Weakly active rows bound the null space
from one side: a direction that moves an output exists unless the rows span it positively, which nonnegative least squares tell (Farkas).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

from layercompiler.cones import psd
from layercompiler.cones.base import KINK

if TYPE_CHECKING:
    from layercompiler.derivatives.residual_map import Point
    from layercompiler.plan.evaluation import Bound
    from layercompiler.programs.cone import ConeProgram, Structure

LARGEST = 500_000  # entries of P and A, dense, up to which null spaces are formed
_WEAK = 10 * KINK  # |v| in scaled coordinates up to which a row counts as weakly active
_NULL = 1e-13  # eigenvalue, beside the largest, of a null vector
_REACHES, _SPANS = 1e-6, 1e-7


def affordable(structure: Structure) -> bool:
    """Whether `many` can be asked."""
    return structure.n * (structure.n + structure.m) <= LARGEST


def many(program: ConeProgram, bound: Bound, point: Point, index: np.ndarray) -> np.ndarray:
    """(len(index),) bool: whether an output that reads the primal solution can have other values, for solved instances.

    Args:
        program: The program as written.
        bound: Its numbers, scaled.
        point: The solutions, in scaled coordinates.
        index: Instances that are looked at.

    Differentiability:
        Where a cone that is no product of rays is at a kink, every null vector counts, to whichever side it may go.
    """
    structure, out = bound.structure, np.zeros(len(index), bool)
    rng = np.random.default_rng(2)
    if structure.n == 0 or not any(o.source == "primal" for o in program.outputs):
        return out
    each = max(1, 4 * LARGEST // (structure.n * (structure.n + structure.m) + 1))
    for start in range(0, len(index), each):
        part = index[start : start + each]
        out[start : start + each] = _many(program, bound, point, part, rng)
    return out


def _many(program: ConeProgram, bound: Bound, point: Point, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    structure, v = bound.structure, point.v[index]
    data = bound.scaled.take(index)
    B, n = len(index), structure.n
    A = np.broadcast_to(structure.A_pattern.full(data.A), (B, structure.m, n)) * _row_factors(structure, data.A)[:, :, None]
    P = np.broadcast_to(structure.P_pattern.full(data.P[:, structure.P_mirror]), (B, n, n))
    with np.errstate(all="ignore"):
        lower, weak, round_ = _lowered(structure, v)
        DA = np.moveaxis(structure.cones.project_dual(lower).apply(np.moveaxis(A, 2, 0)), 0, 2) if structure.m else A
        largest = np.abs(P).max(axis=(1, 2), keepdims=True)
        H = P / np.where(largest > 0, largest, 1.0) + np.swapaxes(A, 1, 2) @ DA
        diagonal = np.diagonal(H, axis1=1, axis2=2)
        d = 1.0 / np.sqrt(np.maximum(diagonal, 1e-12 * diagonal.max(axis=1, keepdims=True)))
        d[~np.isfinite(d)] = 1.0
    H = H * d[:, :, None] * d[:, None, :]
    sound = np.isfinite(H).all(axis=(1, 2))
    H[~sound] = 0.0  # of which every direction is a null vector
    w, vectors = np.linalg.eigh(0.5 * (H + np.swapaxes(H, 1, 2)))
    null = w <= _NULL * np.maximum(w[:, -1:], 1.0)
    out = np.zeros(B, bool)
    rows = np.flatnonzero(null.any(axis=1))
    if len(rows) == 0:
        return out
    # Null vectors come first: eigenvalues ascend. (rows, n, k), zero beyond those of an instance.
    k = int(null.sum(axis=1).max())
    N = vectors[rows, :, :k] * null[rows, None, :k] * d[rows, :, None]
    N /= np.maximum(np.abs(N).max(axis=1, keepdims=True), 1e-300)
    moves = _moves(program, bound, index[rows], N, rng)
    g = np.einsum("o,bok->bk", rng.uniform(0.5, 1.5, moves.shape[1]) * rng.choice([-1.0, 1.0], moves.shape[1]), moves)
    for at, i in enumerate(rows):
        if np.abs(moves[at]).max(initial=0.0) <= _REACHES:
            continue
        bound_rows = A[i, weak[i]] @ N[at]
        length = np.linalg.norm(bound_rows, axis=1)
        bound_rows = bound_rows[length > _SPANS] / length[length > _SPANS, None]
        out[i] = round_[i] or not (_spanned(bound_rows, g[at]) and _spanned(bound_rows, -g[at]))
    return out


def _spanned(rows: np.ndarray, g: np.ndarray) -> bool:
    """Whether g is a nonnegative combination of the rows: then rows z <= 0 exclude g'z > 0."""
    size = np.linalg.norm(g)
    return bool(len(rows)) and nnls(rows.T, g / size)[1] <= _SPANS


def _moves(program: ConeProgram, bound: Bound, index: np.ndarray, N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(instances, outputs' entries, k): changes of the outputs along the columns of N, beside those along a random vector."""
    outputs = [o for o in program.outputs if o.source == "primal"]
    usual = rng.uniform(0.5, 1.5, N.shape[1]) * rng.choice([-1.0, 1.0], N.shape[1])

    def changes(u: np.ndarray) -> np.ndarray:
        full = np.zeros((bound.values.count, u.shape[1]))
        full[index] = u if bound.scaling is None else u * bound.scaling.x[index]
        zero_x, zero_y = np.zeros((len(full), program.structure.n)), np.zeros((len(full), program.structure.m))
        x, _ = bound.reduction.expand_step(full, np.zeros((len(full), bound.structure.m)), zero_x, zero_y)
        return np.concatenate([o.pick(x[index]) for o in outputs], axis=1)

    size = np.abs(changes(np.repeat(usual[None], len(index), axis=0)))
    size = np.where(size > 0, size, 1.0)
    return np.stack([changes(N[:, :, j]) / size for j in range(N.shape[2])], axis=2)


def _row_factors(structure: Structure, A: np.ndarray) -> np.ndarray:
    """(1 or B, m): one over the length of each row, and over the longest of a cone that is no product of rays."""
    square = np.zeros((len(A), structure.m))
    np.add.at(square.T, structure.A_rows, (A**2).T)
    for (cone, count), rows in zip(structure.cones.blocks, structure.cones.slices, strict=True):
        if cone.name not in ("zero", "nonnegative"):
            square[:, rows] = np.repeat(square[:, rows].reshape(len(A), count, cone.dim).max(axis=2), cone.dim, axis=1)
    return 1.0 / np.sqrt(np.where(square > 0, square, 1.0))


def _lowered(structure: Structure, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """v less a little along the unit of each cone; which rays are weakly active (B, m); whether another cone is at a kink (B,)."""
    lower, weak, round_ = v.copy(), np.zeros(v.shape, bool), np.zeros(len(v), bool)
    for (cone, count), rows in zip(structure.cones.blocks, structure.cones.slices, strict=True):
        if cone.name == "zero":
            continue
        part = lower[:, rows].reshape(len(v), count, cone.dim)
        if cone.name == "nonnegative":
            lower[:, rows], weak[:, rows] = v[:, rows] - _WEAK, np.abs(v[:, rows]) <= _WEAK
            continue
        round_ |= ~cone.project_dual(part).smooth.all(axis=1)
        shift = _WEAK * np.maximum(np.abs(part).max(axis=2, initial=0.0), 1.0)[..., None]
        if cone.name == "second_order":
            part[..., :1] -= shift
        elif cone.name == "psd":
            part -= shift * psd.vector(np.eye(cone.order), cone.order)  # type: ignore[attr-defined]
        lower[:, rows] = part.reshape(len(v), -1)
    return lower, weak, round_
