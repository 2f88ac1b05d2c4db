"""SCS: operator splitting, for large PSD blocks and as a second opinion (source: O'Donoghue 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from layercompiler.programs.cone import Structure
from layercompiler.solvers.engine import Engine, Options, register
from layercompiler.status import Status

_STATUS = {
    1: Status.SOLVED,
    2: Status.INACCURATE,
    -1: Status.DUAL_INFEASIBLE,
    -2: Status.PRIMAL_INFEASIBLE,
    -6: Status.DUAL_INFEASIBLE,
    -7: Status.PRIMAL_INFEASIBLE,
}


@register
class SCS(Engine):
    """SCS through its Python package; our row order is its own."""

    name = "scs"
    package = "scs"
    cones = frozenset({"zero", "nonnegative", "second_order", "psd", "exponential", "power"})
    releases_gil = True

    def __init__(self, structure: Structure) -> None:
        super().__init__(structure)
        self.A_order, indptr = structure.A_csc
        self.A_indices, self.A_indptr = structure.A_rows[self.A_order].astype(np.int32), indptr.astype(np.int32)
        self.P_order, indptr = structure.P_csc
        self.P_indices, self.P_indptr = structure.P_rows[self.P_order].astype(np.int32), indptr.astype(np.int32)

    def solve_one(self, data: tuple[np.ndarray, ...], tolerance: float, options: Options, deadline: float | None) -> tuple[Any, ...]:
        """See `Engine.solve_one`."""
        import scs

        P, q, _, A, b = data
        n, m = self.structure.n, self.structure.m
        if m == 0:  # SCS wants at least one row
            return None, None, None, Status.FAILED, 0
        arguments: dict[str, Any] = {
            "A": sp.csc_matrix((A[self.A_order], self.A_indices, self.A_indptr), shape=(m, n)),
            "b": b,
            "c": q,
        }
        if len(P):
            arguments["P"] = sp.csc_matrix((P[self.P_order], self.P_indices, self.P_indptr), shape=(n, n))
        settings: dict[str, Any] = {
            "verbose": options.verbose,
            "eps_abs": tolerance,
            "eps_rel": tolerance,
            "eps_infeas": max(tolerance, 1e-9),
        }
        settings["max_iters"] = int(options.max_iterations or 100_000)
        if deadline is not None:
            settings["time_limit_secs"] = max(deadline, 1e-3)
        try:
            solution = scs.SCS(arguments, _cones(self.structure), **settings).solve()
        except ValueError:  # SCS cannot factor the data, because numbers overflow, say: the failure of one instance
            return None, None, None, Status.FAILED, 0
        info = solution["info"]
        status = _STATUS.get(info["status_val"], Status.FAILED)
        if status == Status.INACCURATE:
            timed_out = deadline is not None and info["iter"] < settings["max_iters"]
            status = Status.TIME_LIMIT if timed_out else Status.ITERATION_LIMIT
        return np.asarray(solution["x"]), np.asarray(solution["y"]), np.asarray(solution["s"]), status, int(info["iter"])


def _cones(structure: Structure) -> dict[str, Any]:
    out: dict[str, Any] = {"z": 0, "l": 0, "q": [], "s": [], "ep": 0, "p": []}
    for cone, count in structure.cones.blocks:
        match cone.name:
            case "zero":
                out["z"] += count
            case "nonnegative":
                out["l"] += count
            case "second_order":
                out["q"] += [cone.dim] * count
            case "psd":
                out["s"] += [cone.order] * count
            case "exponential":
                out["ep"] += count
            case "power":
                out["p"] += [float(alpha) for alpha in cone.alphas(count)]
    return out
