"""diffcp's SCS wrapper: an oracle for tests, linear objectives only (source: Agrawal et al. 2019)."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from layercompiler.programs.cone import Structure
from layercompiler.solvers.engine import Engine, Options, register
from layercompiler.status import Status


@register
class Diffcp(Engine):
    """diffcp; kept for comparisons, never chosen by itself."""

    name = "diffcp"
    package = "diffcp"
    extra = "diffcp"
    cones = frozenset({"zero", "nonnegative", "second_order", "psd", "exponential"})
    quadratic = False

    def solve_one(self, data: tuple[np.ndarray, ...], tolerance: float, options: Options, deadline: float | None) -> tuple[Any, ...]:
        """See `Engine.solve_one`."""
        import diffcp

        _, q, _, A, b = data
        s = self.structure
        matrix = sp.csc_matrix((A, (s.A_rows, s.A_cols)), shape=(s.m, s.n))
        settings: dict[str, Any] = {"eps_abs": tolerance, "eps_rel": tolerance, "max_iters": int(options.max_iterations or 100_000)}
        if deadline is not None:
            settings["time_limit_secs"] = deadline
        try:
            x, y, slack, _, _ = diffcp.solve_and_derivative(
                matrix, b, q, _cones(s), solve_method="SCS", verbose=options.verbose, **settings
            )
        except diffcp.SolverError as error:
            text = str(error).lower()
            status = Status.PRIMAL_INFEASIBLE if "infeasible" in text else Status.DUAL_INFEASIBLE if "unbounded" in text else Status.FAILED
            return None, None, None, status, 0
        return x, y, slack, Status.SOLVED, 0


def _cones(structure: Structure) -> dict[str, Any]:
    out: dict[str, Any] = {"z": 0, "l": 0, "q": [], "s": [], "ep": 0}
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
    return out
