"""Which of the compiled engines is faster on a linear or quadratic program, by a model of their operations."""

from __future__ import annotations

from layercompiler import kernels
from layercompiler.kernels import operations
from layercompiler.programs.cone import MATRIX_KINDS, Structure
from layercompiler.solvers.dense_qp import DenseEngine

# Measured by benchmarks/crossover.py.
_TINY = 1e5  # operations of one instance below which the overhead of a general engine decides
_RATE = {True: 2.0, False: 1.5}  # operations of the dual form, and of the primal form, in the time of one of the lanes engine's
_LANES = 14  # factorisations that the lanes engine and its refinement take
_VERTEX = 0.5  # linear objectives with equalities: the dense kernels take about twice the steps, and the lanes engine folds their bounds


def dense_pays(structure: Structure, kind: str) -> str:
    """Why the dense kernels are the better choice; empty where they are not."""
    if not DenseEngine.accepts(structure):
        return ""
    if kind in MATRIX_KINDS:
        return "given as matrices"
    dense = operations(structure.n, *_rows(structure))
    if dense <= _TINY:
        return f"linear cones, {dense / 1e3:.0f} thousand operations"
    cones = kernels.cone_list(structure.cones.blocks)
    lanes = kernels.Conic(structure.n, (structure.P_rows, structure.P_cols), (structure.A_rows, structure.A_cols), cones)
    ratio = advantage(structure, lanes.flops)
    return f"linear cones, modelled {ratio:.1f} times as fast as lanes" if ratio > 1 else ""


def lanes_pay(structure: Structure, flops: float) -> str:
    """What the model says for the lanes engine, of which one factorisation takes `flops`; empty where the dense kernels do not apply."""
    if not DenseEngine.accepts(structure):
        return ""
    ratio = advantage(structure, flops)
    return f"modelled {1 / ratio:.1f} times as fast as dense_qp" if 0 < ratio < 1 else ""


def advantage(structure: Structure, flops: float) -> float:
    """How many times as fast as the lanes engine the dense kernels are, by the model; `flops` are those of one of its factorisations."""
    zero, rows = _rows(structure)
    steps = _VERTEX if zero and len(structure.P_rows) == 0 else 1.0
    return steps * _LANES * _RATE[rows <= 2 * structure.n] * flops / operations(structure.n, zero, rows)


def _rows(structure: Structure) -> tuple[int, int]:
    zero = sum(count for cone, count in structure.cones.blocks if cone.name == "zero")
    return zero, structure.m - zero
