"""ECOS: a small interior-point engine for linear objectives (source: Domahidi, Chu, Boyd 2013)."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from layercompiler.programs.cone import Structure
from layercompiler.solvers.engine import Engine, Options, register
from layercompiler.status import Status

_STATUS = {
    0: Status.SOLVED,
    10: Status.INACCURATE,
    1: Status.PRIMAL_INFEASIBLE,
    11: Status.PRIMAL_INFEASIBLE,
    2: Status.DUAL_INFEASIBLE,
    12: Status.DUAL_INFEASIBLE,
    -1: Status.ITERATION_LIMIT,
}


@register
class ECOS(Engine):
    """ECOS through its Python package; no quadratic objective, no PSD and no power cones."""

    name = "ecos"
    package = "ecos"
    extra = "ecos"
    cones = frozenset({"zero", "nonnegative", "second_order", "exponential"})
    quadratic = False

    def __init__(self, structure: Structure) -> None:
        super().__init__(structure)
        zero = sum(count for cone, count in structure.cones.blocks if cone.name == "zero")
        self.zero = zero
        # ECOS writes the exponential cone as (x, z, y) with y exp(x / y) <= z: ours with the last two swapped.
        local, at = [], 0
        for cone, count in structure.cones.blocks:
            swap = np.array([0, 2, 1]) if cone.name == "exponential" else np.arange(cone.dim)
            local.append((at + np.arange(count)[:, None] * cone.dim + swap).ravel())
            at += count * cone.dim
        self.row = np.concatenate(local).astype(np.intp) if local else np.zeros(0, np.intp)

    def solve_one(self, data: tuple[np.ndarray, ...], tolerance: float, options: Options, deadline: float | None) -> tuple[Any, ...]:
        """See `Engine.solve_one`."""
        import ecos

        _, q, _, A, b = data
        s = self.structure
        full = sp.csr_matrix((A, (s.A_rows, s.A_cols)), shape=(s.m, s.n))[self.row]
        split = self.zero
        kinds = {cone.name: (cone, count) for cone, count in s.cones.blocks}
        dims = {
            "l": kinds.get("nonnegative", (None, 0))[1],
            "q": [c.dim for c, count in s.cones.blocks if c.name == "second_order" for _ in range(count)],
            "e": kinds.get("exponential", (None, 0))[1],
        }
        arguments: dict[str, Any] = {"verbose": options.verbose, "abstol": tolerance, "reltol": tolerance, "feastol": tolerance}
        arguments["max_iters"] = int(options.max_iterations or 200)
        if s.m > split:
            G, h = full[split:].tocsc(), b[self.row][split:]
        else:
            G, h, dims = None, None, {"l": 0, "q": [], "e": 0}
        if split:
            arguments |= {"A": full[:split].tocsc(), "b": b[self.row][:split]}
        solution = ecos.solve(q, G, h, dims, **arguments)
        y, slack = np.zeros(s.m), np.zeros(s.m)
        y[self.row] = np.concatenate([np.asarray(solution["y"]).ravel(), np.asarray(solution["z"]).ravel()])[: s.m]
        slack[self.row[split:]] = np.asarray(solution["s"]).ravel()[: s.m - split]
        status = _STATUS.get(solution["info"]["exitFlag"], Status.INACCURATE)
        return np.asarray(solution["x"]), y, slack, status, int(solution["info"]["iter"])
