"""Optimality conditions of a solved batch, evaluated from the data of the whole program, before presolve and scaling."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True)
class Residuals:
    """How far each instance is from optimality; every array has the batch shape, NaN where an instance failed.

    Each number is the largest entry of a residual over one plus the largest entry of its terms. All four at zero is
    necessary and sufficient for optimality.

    Attributes:
        primal: Distance of s = b - Ax from the cone K.
        dual: Distance of y from the dual cone K*.
        stationarity: Px + A'y + q.
        gap: x'Px + q'x + b'y, the duality gap.
    """

    primal: np.ndarray
    dual: np.ndarray
    stationarity: np.ndarray
    gap: np.ndarray

    @property
    def worst(self) -> np.ndarray:
        """The largest of the four, batch shape."""
        return np.max([getattr(self, f.name) for f in fields(self)], axis=0)

    def __str__(self) -> str:
        """One line with the worst instance of each."""
        parts = ", ".join(f"{f.name} {_largest(getattr(self, f.name)):.1e}" for f in fields(self))
        failed = int(np.isnan(self.worst).sum())
        return f"optimality conditions: {parts}" + (f" ({failed} instances failed)" if failed else "")


def residuals(evaluation: Any) -> Residuals:
    """Evaluate the optimality conditions of a solved batch.

    Args:
        evaluation: What `CompiledProblem.evaluate` returned.

    Returns:
        Residuals computed from the data that the parameters define, with scipy and the exact projections, by none of the
        code that solved.

    Cost:
        One sparse product with P, A and A' per instance.
    """
    program, data = evaluation.problem.program, evaluation.bound.full
    rows = [_instance(program.structure, data.one(i), evaluation.x[i], evaluation.y[i]) for i in range(evaluation.count)]
    table = np.array(rows, dtype=float).reshape(evaluation.count, 4)
    table[evaluation.bad] = np.nan
    return Residuals(*(column.reshape(evaluation.batch) for column in table.T))


def _instance(structure: Any, data: tuple[np.ndarray, ...], x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    values_P, q, _, values_A, b = data
    n, m = structure.n, structure.m
    upper = sp.coo_array((values_P, (structure.P_rows, structure.P_cols)), shape=(n, n)).tocsr()
    A = sp.coo_array((values_A, (structure.A_rows, structure.A_cols)), shape=(m, n)).tocsr()
    Px, ATy, Ax = upper @ x + sp.triu(upper, 1).T @ x, A.T @ y, A @ x
    primal = structure.cones.primal_violation((b - Ax)[None])[0] / (1 + max(_size(Ax), _size(b)))
    dual = structure.cones.dual_violation(y[None])[0] / (1 + _size(y))
    stationarity = _size(Px + ATy + q) / (1 + max(_size(Px), _size(ATy), _size(q)))
    gap = abs(x @ Px + q @ x + b @ y) / (1 + max(abs(x @ Px), abs(q @ x), abs(b @ y)))
    return float(primal), float(dual), float(stationarity), float(gap)


def _size(v: np.ndarray) -> float:
    return float(np.abs(v).max(initial=0.0))


def _largest(a: np.ndarray) -> float:
    finite = a[np.isfinite(a)]
    return float(finite.max()) if finite.size else float("nan")
