"""From numbers to certified points: run an engine roughly, refine on the residual map, decide the status by the residual."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from layercompiler import kernels
from layercompiler.derivatives.products import Products
from layercompiler.derivatives.residual_map import Point, ResidualMap
from layercompiler.derivatives.system import Linearization
from layercompiler.errors import MissingDependencyError, UnsupportedConeError
from layercompiler.plan.crossover import lanes_pay
from layercompiler.programs.cone import Data, Structure
from layercompiler.solvers import Engine, Options, Raw, engine
from layercompiler.solvers.engine import CORES, engine_names
from layercompiler.solvers.lanes import Lanes
from layercompiler.status import Status

EXACT = 1e-11  # a refined point this good is final; a worse one is kept while a tighter run is tried
_RATE = 2e9  # operations a second of a factorisation, taken low
_CERTAIN, _ROUNDING = 1e-6, 1e-12  # defects and gains of certificates
_FLAT = 1e-10  # d'Pd beside its terms of a direction that P does not bend: the square of what engines leave
_LARGE_NULL = 1000  # variables up to which the null space of P is formed
_LARGE_PSD = 60  # from this order on an interior-point iteration outlasts any time limit


@dataclass
class Found:
    """The points of a batch with their status, before recovery."""

    point: Point
    linear: Linearization | None
    status: np.ndarray
    iterations: np.ndarray
    refinements: np.ndarray
    engine: np.ndarray


class Search:
    """The engines of one structure, in the order they are tried.

    Args:
        structure: The reduced program's pattern.
        residual_map: Its residual map.
        solver: Name of an engine, or "auto".
    """

    def __init__(self, structure: Structure, residual_map: ResidualMap, solver: str, reason: str = "asked for") -> None:
        self.structure, self.map = structure, residual_map
        self.attempts: list[tuple[Engine, float]] = []
        self.reason = ""
        if solver.lower() == "auto":
            first = self._choose()
        else:
            first = engine(solver)
            self.reason = reason
            if not first.accepts(structure):
                kinds = sorted({cone.name for cone, _ in structure.cones.blocks})
                raise UnsupportedConeError(
                    f"solver '{first.name}' cannot solve this problem",
                    expected=f"cones among {sorted(first.cones)}" + ("" if first.quadratic else " and a linear objective"),
                    got=f"cones {kinds}" + (" and a quadratic objective" if len(structure.P_rows) else ""),
                    mend="use solver='auto'",
                )
        chosen = first(structure)
        self.attempts = [(chosen, chosen.rough), (chosen, first.tightest)]
        if solver.lower() == "auto" and isinstance(chosen, Lanes):
            self.reason = ", ".join(filter(None, (self.reason, lanes_pay(structure, chosen.conic.flops))))
        for name, tolerance in (("clarabel", 1e-10), ("scs", 1e-9)):
            kind = engine(name)
            if kind is not first and kind.accepts(structure):
                self.attempts.append((kind(structure), tolerance))

    def _choose(self) -> type[Engine]:
        largest = max((cone.order for cone, _ in self.structure.cones.blocks if cone.name == "psd"), default=0)
        reasons = {"lanes": "every cone runs on lanes", "scs": f"PSD order {largest} > {_LARGE_PSD}"}
        other = "handles every cone" if kernels.available() else "handles every cone; the kernels were not compiled"
        for name in ("scs", "clarabel") if largest > _LARGE_PSD else ("lanes", "clarabel", *engine_names()):
            with suppress(MissingDependencyError):  # the kernels are optional, and so are most engines
                kind = engine(name)
                if kind.accepts(self.structure):
                    self.reason = reasons.get(name, other)
                    return kind
        raise UnsupportedConeError(
            "no installed engine solves this problem",
            expected=f"cones that one of {sorted(engine_names())} handles",
            got=f"cones {sorted({cone.name for cone, _ in self.structure.cones.blocks})}",
            mend="register an engine for them, see CONTRIBUTING.md",
        )

    def describe(self) -> str:
        """The chosen engine and why."""
        return f"{self.attempts[0][0].name} ({self.reason})"

    @property
    def first(self) -> str:
        """The first run: engine and tolerance."""
        return _told(self.attempts[0])

    @property
    def later(self) -> tuple[str, ...]:
        """The runs after it."""
        return tuple(map(_told, self.attempts[1:]))

    def __call__(
        self, data: Data, products: Products, finite: np.ndarray, options: Options, began: float, start: np.ndarray | None
    ) -> Found:
        """Solve a (scaled) batch; instances that are not `finite` are not touched."""
        if start is None and options.time_limit is None and finite.all():
            found, first = self._at_once(data, products, options)
            if found is not None:
                return found
        else:
            first = None
        state, earlier = _State(self.structure, data, finite), None
        if start is not None:
            self._try_start(state, data, products, start, options)
        for level, (solver, tolerance) in enumerate(self.attempts):
            # Another engine is for what the first could not solve; at a kink no engine reaches rounding.
            pending = np.flatnonzero(state.pending & (state.norm > options.tolerance) if level > 1 else state.pending)
            if len(pending) == 0:
                break
            left = None if options.time_limit is None else options.time_limit - (time.perf_counter() - began)
            if left is not None and left <= 0:
                state.status[pending] = np.where(state.norm[pending] <= options.tolerance, Status.SOLVED, Status.TIME_LIMIT)
                break
            if level and options.max_iterations is not None:
                break
            whole = len(pending) == data.batch
            part, bound = (data, products) if whole else (data.take(pending), products.take(pending))
            if options.engine_tolerance is not None:
                tolerance = min(options.engine_tolerance, tolerance) if level else options.engine_tolerance
            if first is not None and level == 0:
                raw = first
            elif earlier is not None:
                raw = solver.resume(part, tolerance, options, left, earlier[1].take(np.searchsorted(earlier[0], pending)))
            else:
                raw = solver.solve(part, tolerance, options, left)
            earlier = (pending, raw) if level == 0 else None
            self._absorb(state, pending, part, bound, raw, solver.name, options, self.affordable(part.batch, options, began))
        return state.found(options)

    def affordable(self, batch: int, options: Options, began: float) -> int:
        """Newton steps that fit into what is left of the time limit, by the operations that one takes."""
        if options.time_limit is None:
            return options.refinements
        left = options.time_limit - (time.perf_counter() - began)
        return min(options.refinements, int(max(left, 0.0) * _RATE / max(self.map.flops * batch, 1.0)))

    def _at_once(self, data: Data, products: Products, options: Options) -> tuple[Found | None, Raw]:
        """The usual case: the first engine solves every instance, and refinement takes each to rounding."""
        solver, tolerance = self.attempts[0]
        raw = solver.solve(data, options.engine_tolerance or tolerance, options, None)
        if options.refinements and not raw.status.any() and np.isfinite(raw.x).all():
            point, taken, linear = self.map.refine(data, products, raw.x, raw.y - raw.s, options.refinements, options.workers or CORES)
            if (point.norm <= EXACT).all():
                name = np.full(data.batch, solver.name, dtype=object)
                return Found(point, linear, raw.status.astype(np.int8), raw.iterations, taken, name), raw
        return None, raw

    def _try_start(self, state: _State, data: Data, products: Products, start: np.ndarray, options: Options) -> None:
        """Newton from a given primal-dual point; instances that reach the exact residual need no engine.

        The others start cold: where Newton's method does not arrive, an interior point takes more iterations from there (10 against 6
        on linear programs, 12 against 8 on semidefinite ones).
        """
        good = np.isfinite(start).all(axis=1) & state.pending
        index = np.flatnonzero(good)
        if len(index):
            z = start[index]
            point, taken, _ = self.map.refine(
                data.take(index),
                products.take(index),
                z[:, : self.structure.n],
                z[:, self.structure.n :],
                options.refinements,
                options.workers or CORES,
            )
            state.keep(index, point, taken, np.zeros(len(index), int), "warm start", point.norm <= EXACT)

    def _absorb(
        self, state: _State, pending: np.ndarray, data: Data, products: Products, raw: Raw, name: str, options: Options, affordable: int
    ) -> None:
        status = raw.status
        proven = certified(self.structure, data, products, raw)
        state.conclude(pending[proven], status[proven], raw.iterations[proven], name)
        limited = ((status == Status.ITERATION_LIMIT) & (options.max_iterations is not None)) | (
            (status == Status.TIME_LIMIT) & (options.time_limit is not None)
        )
        with np.errstate(all="ignore"):
            finite = np.isfinite(raw.x).all(axis=1) & np.isfinite(raw.y).all(axis=1) & np.isfinite(raw.s).all(axis=1)
        certificate = (status == Status.PRIMAL_INFEASIBLE) | (status == Status.DUAL_INFEASIBLE)
        usable = finite & ~proven & ~certificate
        for index, steps in ((np.flatnonzero(usable & ~limited), affordable), (np.flatnonzero(usable & limited), 0)):
            if len(index) == 0:
                continue
            whole = len(index) == data.batch
            part, bound = (data, products) if whole else (data.take(index), products.take(index))
            point, taken, linear = self.map.refine(part, bound, raw.x[index], raw.y[index] - raw.s[index], steps, options.workers or CORES)
            exact = point.norm <= (EXACT if steps else options.tolerance)
            state.keep(pending[index], point, taken, raw.iterations[index], name, exact)
            if state.point is point:
                state.linear = linear
        failed = state.pending[pending] & limited
        counted = usable[failed]  # iterations are counted once, with the point
        state.conclude(pending[failed], status[failed], np.where(counted, 0, raw.iterations[failed]), name)
        state.last[pending] = status


def _told(attempt: tuple[Engine, float]) -> str:
    return f"{attempt[0].name} at {attempt[1]:g}"


class _State:
    """What is known of each instance while engines are tried; points are kept as they were evaluated, whoever their neighbors are."""

    def __init__(self, structure: Structure, data: Data, finite: np.ndarray) -> None:
        count = data.batch
        self.count = count
        n, m = np.zeros((count, structure.n)), np.zeros((count, structure.m))
        self.point = Point(structure.cones, n, m, m, n, m, np.full(count, np.inf))
        self.status = np.where(finite, Status.FAILED, Status.NONFINITE_INPUT).astype(np.int8)
        self.last = np.full(count, Status.FAILED, np.int8)
        self.pending = finite.copy()
        self.iterations, self.refinements = np.zeros(count, int), np.zeros(count, int)
        self.engine = np.full(count, "", dtype=object)
        self.linear: Linearization | None = None

    @property
    def norm(self) -> np.ndarray:
        """(count,) residuals of the points held, infinite where there is none."""
        return self.point.norm

    def keep(self, index: np.ndarray, point: Point, taken: np.ndarray, iterations: np.ndarray, name: str, exact: np.ndarray) -> None:
        """Keep the points that are better than what is held; `exact` ones are final."""
        better = point.norm < self.norm[index]
        at = index[better]
        if len(at) == self.count:
            self.point, self.linear = point, None
        elif better.any():
            self.point, self.linear = self.point.put(at, point.take(np.flatnonzero(better))), None
        self.refinements[at], self.engine[at] = taken[better], name
        self.iterations[index] += iterations
        done = index[exact]
        self.status[done], self.pending[done] = Status.SOLVED, False

    def conclude(self, index: np.ndarray, status: np.ndarray, iterations: np.ndarray, name: str) -> None:
        """Give instances a final status."""
        self.status[index], self.pending[index], self.engine[index] = status, False, name
        self.iterations[index] += iterations

    def found(self, options: Options) -> Found:
        """The result, with instances that never became exact judged by the accepted tolerance."""
        open_ = self.pending & (self.status != Status.TIME_LIMIT)
        good = open_ & (self.norm <= options.tolerance)
        self.status[good] = Status.SOLVED
        bad = open_ & ~good
        limit = (self.last == Status.ITERATION_LIMIT) | (self.last == Status.TIME_LIMIT)
        self.status[bad] = np.where(limit[bad], self.last[bad], np.where(np.isfinite(self.norm[bad]), Status.INACCURATE, Status.FAILED))
        return Found(self.point, self.linear, self.status, self.iterations, self.refinements, self.engine)


def certified(structure: Structure, data: Data, products: Products, raw: object) -> np.ndarray:
    """(B,) bool: claims of infeasibility whose certificate holds on the data.

    Primal infeasible: y in K*, A'y = 0, b'y < 0. Dual infeasible: Px = 0, -Ax in K, q'x < 0. A product that is rounding beside its terms is
    none: where q is a combination of rows, directions along which nothing changes look like a fall. P is asked on its own scale as
    well: beside a q that is far larger any P looks like zero, and ends the fall all the same.
    """
    out = np.zeros(data.batch, bool)
    claims_primal, claims_dual = raw.status == Status.PRIMAL_INFEASIBLE, raw.status == Status.DUAL_INFEASIBLE
    with np.errstate(all="ignore"):
        if claims_primal.any():
            y = np.where(np.isfinite(raw.y), raw.y, 0.0)
            gain = -np.sum(data.b * y, axis=1)
            y = y / np.where(gain > _ROUNDING * np.sum(np.abs(data.b * y), axis=1), gain, np.nan)[:, None]
            defect = np.maximum(np.abs(products.AT(y)).max(axis=1, initial=0.0), structure.cones.dual_violation(y))
            out |= claims_primal & (defect <= _CERTAIN * (1 + np.abs(y).max(axis=1, initial=0.0)))
        if claims_dual.any():
            x = np.where(np.isfinite(raw.x), raw.x, 0.0)
            falls = claims_dual & _falls(structure, data, products, x)
            bent = np.flatnonzero(falls & ~(np.sum(x * products.P(x), axis=1) <= _FLAT * products.P_terms(x)))
            if len(bent) and structure.n <= _LARGE_NULL:
                part, of = data.take(bent), products.take(bent)
                falls[bent] = _falls(structure, part, of, _straight(structure, part, x[bent]))
            out |= falls
    return out


def _falls(structure: Structure, data: Data, products: Products, x: np.ndarray) -> np.ndarray:
    """(B,) bool: whether the objective falls along x for ever, but for the tolerance."""
    gain = -np.sum(data.q * x, axis=1)
    x = x / np.where(gain > _ROUNDING * np.sum(np.abs(data.q * x), axis=1), gain, np.nan)[:, None]
    defect = np.maximum(np.abs(products.P(x)).max(axis=1, initial=0.0), structure.cones.primal_violation(-products.A(x)))
    return defect <= _CERTAIN * (1 + np.abs(x).max(axis=1, initial=0.0))


def _straight(structure: Structure, data: Data, x: np.ndarray) -> np.ndarray:
    """The parts of directions (B, n) that P does not bend."""
    P = np.broadcast_to(structure.P_pattern.full(data.P[:, structure.P_mirror]), (len(x), structure.n, structure.n))
    w, vectors = np.linalg.eigh(np.where(np.isfinite(P).all(axis=(1, 2), keepdims=True), P, np.eye(structure.n)))
    flat = w <= _FLAT * w[:, -1:]
    return np.einsum("bij,bj->bi", vectors, np.einsum("bij,bi->bj", vectors, x) * flat)
