"""moreau: an interior point that takes whole batches, on the CPU or on CUDA (Apache-2.0, packages moreau and moreau-cpu)."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from layercompiler.programs.cone import Data, Structure
from layercompiler.solvers.engine import Engine, Options, Raw, register
from layercompiler.solvers.order import upper_order
from layercompiler.status import Status

_STATUS = {
    "Solved": Status.SOLVED,
    "PrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "AlmostPrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "DualInfeasible": Status.DUAL_INFEASIBLE,
    "AlmostDualInfeasible": Status.DUAL_INFEASIBLE,
    "MaxIterations": Status.ITERATION_LIMIT,
    "MaxTime": Status.TIME_LIMIT,
}


@register
class Moreau(Engine):
    """moreau's batched interior point; every bound is a row of A, so nothing goes through its direct cones."""

    name = "moreau"
    package = "moreau"
    extra = "moreau"
    cones = frozenset({"zero", "nonnegative", "second_order", "psd", "exponential", "power"})

    @classmethod
    def available(cls) -> bool:
        """Whether the package and one of its backends are installed."""
        backends = ("moreau_cpu", "moreau_cuda")
        return super().available() and any(importlib.util.find_spec(b) for b in backends)

    def __init__(self, structure: Structure) -> None:
        super().__init__(structure)
        self.row = upper_order(structure)
        rows = np.argsort(self.row)[structure.A_rows]
        self.A_order = np.lexsort((structure.A_cols, rows))
        self.A_pattern = _compressed(rows[self.A_order], structure.A_cols[self.A_order], structure.m)
        pattern = structure.P_pattern
        self.P_order = np.lexsort((pattern.cols, pattern.rows))
        self.P_pattern = _compressed(pattern.rows[self.P_order], pattern.cols[self.P_order], structure.n)
        self.P_mirror = structure.P_mirror[self.P_order]

    def solve(self, data: Data, tolerance: float, options: Options, deadline: float | None) -> Raw:
        """See `Engine.solve`; the batch is one call."""
        import moreau

        batch, s = data.batch, self.structure
        if batch == 0:
            return Raw(np.zeros((0, s.n)), np.zeros((0, s.m)), np.zeros((0, s.m)), np.zeros(0, np.int8), np.zeros(0, int))
        limits: dict[str, Any] = {} if options.max_iterations is None else {"max_iter": int(options.max_iterations)}
        limits |= {} if deadline is None else {"time_limit": max(deadline, 1e-3)}
        settings = moreau.Settings(
            solver="ipm",
            batch_size=batch,
            verbose=options.verbose,
            ipm_settings=moreau.IPMSettings(tol_gap_abs=tolerance, tol_gap_rel=tolerance, tol_feas=tolerance),
            **limits,
        )
        solver = moreau.CompiledSolver(
            s.n, s.m, *(p.tolist() for p in self.P_pattern), *(p.tolist() for p in self.A_pattern), cones=_cones(s), settings=settings
        )
        P, A, b = (np.broadcast_to(a, (batch, a.shape[1])) for a in (data.P, data.A, data.b))
        solver.setup(np.ascontiguousarray(P[:, self.P_mirror]), np.ascontiguousarray(A[:, self.A_order]))
        found = solver.solve(np.ascontiguousarray(data.q), np.ascontiguousarray(b[:, self.row]))
        y, slack = np.empty((batch, s.m)), np.empty((batch, s.m))
        y[:, self.row], slack[:, self.row] = found.z, found.s
        status = np.array([_STATUS.get(str(w), Status.INACCURATE) for w in solver.info.status], dtype=np.int8)
        return Raw(np.array(found.x), y, slack, status, np.asarray(solver.info.iterations, dtype=int).reshape(batch))

    def solve_one(self, data: tuple[np.ndarray, ...], tolerance: float, options: Options, deadline: float | None) -> tuple[Any, ...]:
        """See `Engine.solve_one`."""
        raw = self.solve(Data(*(a[None] for a in data)), tolerance, options, deadline)
        return raw.x[0], raw.y[0], raw.s[0], raw.status[0], raw.iterations[0]


def _compressed(rows: np.ndarray, cols: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=size))]), cols


def _cones(structure: Structure) -> Any:
    import moreau

    out: dict[str, Any] = {
        "num_zero_cones": 0,
        "num_nonneg_cones": 0,
        "num_exp_cones": 0,
        "so_cone_dims": [],
        "psd_dims": [],
        "power_alphas": [],
    }
    for cone, count in structure.cones.blocks:
        match cone.name:
            case "zero":
                out["num_zero_cones"] += count
            case "nonnegative":
                out["num_nonneg_cones"] += count
            case "second_order":
                out["so_cone_dims"] += [cone.dim] * count
            case "psd":
                out["psd_dims"] += [cone.order] * count
            case "exponential":
                out["num_exp_cones"] += count
            case "power":
                out["power_alphas"] += [float(alpha) for alpha in cone.alphas(count)]
    return moreau.Cones(**out)
