"""Whether the quadratic objectives of a batch are convex, for programs whose parameters may make them otherwise."""

from __future__ import annotations

import numpy as np

from layercompiler.programs.cone import MATRIX_KINDS, ConeProgram, Data
from layercompiler.solvers.interior_point.primal import CONVEX


def open_to_doubt(program: ConeProgram) -> bool:
    """Whether a P that is not positive semidefinite may come: of programs written as matrices; those of a modelling language are convex."""
    return program.kind in MATRIX_KINDS and bool(program.P.parametric.any())


def convex(program: ConeProgram, data: Data) -> np.ndarray:
    """(B or 1,), where P is positive semidefinite but for rounding."""
    s = program.structure
    P = np.where(np.isfinite(data.P).all(axis=1, keepdims=True), data.P, 0.0)
    Q = s.P_pattern.full(P[:, s.P_mirror])
    Q = Q / np.maximum(np.abs(Q).max(axis=(1, 2), keepdims=True), np.finfo(float).tiny)
    try:
        np.linalg.cholesky(Q + CONVEX * np.eye(s.n))
    except np.linalg.LinAlgError:
        return np.linalg.eigvalsh(Q)[:, 0] >= -CONVEX
    return np.ones(len(Q), bool)
