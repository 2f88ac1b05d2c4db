"""Clarabel: the interior-point engine that every install has (source: Goulart and Chen 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from layercompiler.programs.cone import Structure
from layercompiler.solvers.engine import Engine, Options, register
from layercompiler.solvers.order import upper_order
from layercompiler.status import Status

_STATUS = {
    "Solved": Status.SOLVED,
    "AlmostSolved": Status.INACCURATE,
    "PrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "AlmostPrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "DualInfeasible": Status.DUAL_INFEASIBLE,
    "AlmostDualInfeasible": Status.DUAL_INFEASIBLE,
    "MaxIterations": Status.ITERATION_LIMIT,
    "MaxTime": Status.TIME_LIMIT,
    "InsufficientProgress": Status.INACCURATE,
    "NumericalError": Status.INACCURATE,
}


@register
class Clarabel(Engine):
    """Clarabel through its Python package; the solve runs without the GIL."""

    name = "clarabel"
    package = "clarabel"
    cones = frozenset({"zero", "nonnegative", "second_order", "psd", "exponential", "power"})
    releases_gil = True

    def __init__(self, structure: Structure) -> None:
        super().__init__(structure)
        self.row = upper_order(structure)
        place = np.empty(structure.m, np.intp)
        place[self.row] = np.arange(structure.m)
        rows = place[structure.A_rows]
        self.A_order = np.lexsort((rows, structure.A_cols))
        self.A_indices = rows[self.A_order].astype(np.int32)
        self.A_indptr = structure.A_csc[1].astype(np.int32)
        self.P_order, P_indptr = structure.P_csc
        self.P_indices, self.P_indptr = structure.P_rows[self.P_order].astype(np.int32), P_indptr.astype(np.int32)

    def solve_one(self, data: tuple[np.ndarray, ...], tolerance: float, options: Options, deadline: float | None) -> tuple[Any, ...]:
        """See `Engine.solve_one`."""
        import clarabel

        P, q, _, A, b = data
        n, m = self.structure.n, self.structure.m
        P_matrix = sp.csc_matrix((P[self.P_order], self.P_indices, self.P_indptr), shape=(n, n))
        A_matrix = sp.csc_matrix((A[self.A_order], self.A_indices, self.A_indptr), shape=(m, n))
        settings = clarabel.DefaultSettings()
        settings.verbose = options.verbose
        settings.presolve_enable = False
        settings.chordal_decomposition_enable = False
        settings.max_threads = 1
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
        if tolerance < 1e-9:
            settings.iterative_refinement_reltol = settings.iterative_refinement_abstol = 1e-14
        if options.max_iterations is not None:
            settings.max_iter = int(options.max_iterations)
        if deadline is not None:
            settings.time_limit = max(deadline, 1e-3)
        solution = clarabel.DefaultSolver(P_matrix, q, A_matrix, b[self.row], _cones(self.structure), settings).solve()
        y, s = np.empty(m), np.empty(m)
        y[self.row], s[self.row] = solution.z, solution.s
        status = _STATUS.get(str(solution.status), Status.FAILED)
        return np.array(solution.x), y, s, status, solution.iterations


def _cones(structure: Structure) -> list[Any]:
    import clarabel

    out: list[Any] = []
    for cone, count in structure.cones.blocks:
        match cone.name:
            case "zero":
                out.append(clarabel.ZeroConeT(count))
            case "nonnegative":
                out.append(clarabel.NonnegativeConeT(count))
            case "second_order":
                out += [clarabel.SecondOrderConeT(cone.dim)] * count
            case "psd":
                out += [clarabel.PSDTriangleConeT(cone.order)] * count
            case "exponential":
                out += [clarabel.ExponentialConeT()] * count
            case "power":
                out += [clarabel.PowerConeT(float(alpha)) for alpha in cone.alphas(count)]
    return out
