"""The run time of a compiled cone program: bind, solve, refine, recover, and their derivatives, on numpy arrays.

This is the only thing the frameworks wrap. A `CompiledProblem` is immutable: any number of threads may share it, and per-call
state travels in an `Evaluation`.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from layercompiler import kernels
from layercompiler.derivatives.lanes import residual_map
from layercompiler.derivatives.residual_map import Point
from layercompiler.derivatives.smoothing import SmoothedMap
from layercompiler.frameworks import layer
from layercompiler.plan import uniqueness
from layercompiler.plan.ambiguity import ambiguity
from layercompiler.plan.arguments import Arguments
from layercompiler.plan.binding import Binding
from layercompiler.plan.convexity import convex, open_to_doubt
from layercompiler.plan.evaluation import Bound, Evaluation
from layercompiler.plan.express import Express, express
from layercompiler.plan.report import report
from layercompiler.plan.search import Search
from layercompiler.plan.smoothed import check, smoothed
from layercompiler.programs.cone import ConeProgram, Data, OutputSpec, ParameterSpec
from layercompiler.programs.presolve import eliminate
from layercompiler.programs.store import save
from layercompiler.solvers import Options
from layercompiler.solvers.engine import CORES
from layercompiler.status import Info, LateInfo, Solution, Status


class CompiledProblem:
    """A cone program compiled once, solved and differentiated for any batch of parameter values.

    Args:
        program: The parametrised cone program.
        solver: Name of the engine, or "auto".
        on_error: "raise" (after all instances are solved) or "flag" (NaN outputs, zero derivatives).
        options: Default options of every call.
    """

    layer_kind = "layer.Layer"

    def __init__(self, program: ConeProgram, solver: str = "auto", on_error: str = "raise", options: Options | None = None) -> None:
        self.program = program
        self.solver, self.on_error, self.options = solver, on_error, options or Options()
        self.elimination = eliminate(program)
        self.structure = self.elimination.structure
        check(self.structure, self.options)
        self.reader = Arguments(program)
        self.binding = Binding(program, self.elimination) if kernels.available() else None
        self.fingerprint = _fingerprint(program)
        self._smoothed_maps: dict[float, SmoothedMap] = {}
        self._plan(solver)

    def _plan(self, solver: str) -> None:
        """Choose the engines and the linear system."""
        self.map = residual_map(self.structure, self._samples())
        self.search = Search(self.structure, self.map, solver)

    def _samples(self) -> Data:
        """Data at two random parameter values."""
        rng = np.random.default_rng(0)
        samples = self.program.bind([rng.uniform(0.5, 1.5, (2, c.size)) for c in self.program.channels], 2)
        return self.elimination.bind(samples).data

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.program, self.solver, self.on_error, self.options)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledProblem:
        return self

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """The parameters in call order."""
        return self.program.parameters

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """The outputs in order."""
        return self.program.outputs

    @property
    def threads(self) -> int:
        """Threads of compiled kernels; results do not depend on it."""
        return self.options.workers or CORES

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What is tried, in turn, after the engine's first run."""
        return self.search.later

    @property
    def refining(self) -> str:
        """How points of an engine are taken to rounding."""
        return f"Newton on the residual map, at most {self.options.refinements} steps"

    @property
    def zsize(self) -> int:
        """Length of the primal-dual vector of one instance."""
        return self.structure.n + self.structure.m

    def smoothed_map(self, mu: float) -> SmoothedMap:
        """The residual map with the barrier of weight `mu`, made on first use."""
        if mu not in self._smoothed_maps:
            self._smoothed_maps[mu] = SmoothedMap(self.structure, self._samples(), mu)
        return self._smoothed_maps[mu]

    def batch_shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Broadcast batch shape of arguments of the given shapes."""
        return self.reader.batch_shape(shapes)

    def arguments(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """Values in parameter order from positional and named arguments."""
        return self.reader.bind(args, kwargs)

    @cached_property
    def express(self) -> Express | None:
        """The express way of plain calls; None where there is none, or `evaluate` is as short."""
        way = express(self, self.options) if kernels.available() and self.parameters else None
        return None if way is None or getattr(self, "matrices", None) is not None else Express(self, way)

    def outcome(self, arrays: Sequence[np.ndarray], *, warm_start: Any = None, options: Options | None = None) -> Any:
        """What `evaluate` gives, without the facts of the instances where that is faster: outputs, point and derivatives."""
        plain = warm_start is None and (options is None or options == self.options)
        found = self.express(arrays) if plain and self.express is not None else None
        return found or self.evaluate(arrays, warm_start=warm_start, options=options)

    def evaluate(self, arrays: Sequence[Any], *, warm_start: Any = None, options: Options | None = None) -> Evaluation:
        """Solve a batch.

        Args:
            arrays: One array per parameter, (batch..., *shape), leading dimensions broadcast.
            warm_start: `Solution.warm_start` (or `Evaluation.z`) of an earlier call with the same batch shape.
            options: Instead of the compiled ones.

        Raises:
            SolveError: With on_error="raise", when an instance is not solved; it carries the whole `Solution`.
        """
        began = time.perf_counter()
        options = options or self.options
        values = self.reader.read(arrays, options.check_domain, raise_nonfinite=self.on_error == "raise")
        bound = Bound.of(self, values)
        open_ = values.finite & convex(self.program, bound.full) if open_to_doubt(self.program) else values.finite
        found = self.search(bound.scaled, bound.products, open_, options, began, self._start(warm_start, values))
        found.status[values.finite & ~open_] = Status.NOT_CONVEX
        linear = found.linear
        if linear is None and (found.status == Status.SOLVED).any() and self.search.affordable(values.count, options, began):
            linear = self.map.linearize(bound.scaled, found.point, self.threads)
        info = self._info(found, linear, bound, began)
        evaluation = Evaluation(self, bound, found.point, linear, info)
        if self.on_error == "raise" and not info.ok.all():
            evaluation.raise_failures()
        return smoothed(evaluation, options)

    def restore(self, arrays: Sequence[Any], z: np.ndarray, options: Options | None = None) -> Evaluation:
        """The evaluation of an earlier call from its arrays and its primal-dual vector, without solving."""
        values = self.reader.read(arrays, check=False, raise_nonfinite=False)
        bound = Bound.of(self, values)
        flat = np.array(z, dtype=float).reshape(values.count, self.zsize)
        bad = ~np.isfinite(flat).all(axis=1)
        flat[bad] = 0.0
        point = self.map.point(bound.scaled, bound.products, flat[:, : self.structure.n], flat[:, self.structure.n :])
        status = np.where(bad, Status.FAILED, Status.SOLVED).astype(np.int8)
        evaluation = Evaluation(self, bound, point, None, _restored_info(status.reshape(values.batch)))
        return smoothed(evaluation, options or self.options)

    def solve(self, *args: Any, warm_start: Any = None, options: Options | dict[str, Any] | None = None, **named: Any) -> Solution:
        """Solve and return everything: named values, optimal value, status, residuals."""
        merged = self.options if options is None else Options.of(options)
        return self.evaluate(self.arguments(args, named), warm_start=warm_start, options=merged).solution()

    def vjp(self, arrays: Sequence[Any], cotangents: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """Solve, and pull output cotangents back to the parameters."""
        return self.evaluate(arrays).vjp(cotangents)

    def jvp(self, arrays: Sequence[Any], tangents: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """Solve, and push parameter tangents forward to the outputs."""
        return self.evaluate(arrays).jvp(tangents)

    def _start(self, warm_start: Any, values: Any) -> np.ndarray | None:
        if warm_start is None:
            return None
        z = getattr(warm_start, "warm_start", warm_start)
        z = np.asarray(z, dtype=float)
        if z.size == 0 or z.shape[-1] != self.zsize:
            return None
        try:
            return np.broadcast_to(z, (*values.batch, self.zsize)).reshape(values.count, self.zsize)
        except ValueError:
            return None

    def _info(self, found: Any, linear: Any, bound: Bound, began: float) -> Info:
        solved, shape = found.status == Status.SOLVED, bound.values.batch
        kinks, alone = solved & ~found.point.smooth(), np.ones(len(solved), bool)

        def flags() -> tuple[np.ndarray, ...]:
            return tuple(a.reshape(shape) for a in self._flags(bound, found.point, linear, solved, kinks, alone))

        return LateInfo(
            flags,
            status=found.status.reshape(shape),
            residual=found.point.norm.reshape(shape),
            iterations=found.iterations.reshape(shape),
            refinements=found.refinements.reshape(shape),
            engine=found.engine.reshape(shape),
            time=time.perf_counter() - began,
        )

    def _flags(
        self, bound: Bound, point: Point, linear: Any, solved: np.ndarray, kinks: np.ndarray, unique: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(degenerate, unique), (B,) each, from what is at a kink and what is known to be one of many; no `linear`: nothing is singular."""
        singular = solved & linear.singular() if linear is not None else np.zeros(len(solved), bool)
        degenerate, index = kinks.copy(), np.flatnonzero(singular | kinks)
        if len(index) == 0:
            return degenerate, unique
        bound, point, linear = self._calm(bound, point, linear)
        if singular.any():
            ambiguous, many = ambiguity(self.program, bound, point, linear)
            degenerate, unique = degenerate | (singular & ambiguous), unique & ~(singular & many)
        if uniqueness.affordable(self.structure):
            unique = unique.copy()
            unique[index] = ~uniqueness.many(self.program, bound, point, index)
        return degenerate | (solved & ~unique), unique

    def _calm(self, bound: Bound, point: Point, linear: Any) -> tuple[Bound, Point, Any]:
        """The same in coordinates where sizes can be compared."""
        return bound, point, linear

    def judge(self, arrays: Sequence[Any], x: np.ndarray, v: np.ndarray, solved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(degenerate, unique), batch shape each, of solutions (x, v) of the reduced program, (B, n) and (B, m)."""
        bound = Bound.of(self, self.reader.read(arrays, check=False, raise_nonfinite=False))
        flat = solved.reshape(-1)
        if bound.scaling is not None:
            y = self.structure.cones.project_dual(v).y
            x, v = x / bound.scaling.x, y / bound.scaling.y - (y - v) / bound.scaling.s
        x, v = (np.where(flat[:, None], a, 0.0) for a in (x, v))
        point = self.map.point(bound.scaled, bound.products, x, v)
        linear = self.map.linearize(bound.scaled, point, self.threads)
        flags = self._flags(bound, point, linear, flat, flat & ~point.smooth(), np.ones(len(flat), bool))
        return flags[0].reshape(solved.shape), flags[1].reshape(solved.shape)

    def describe(self) -> str:
        """One line: kind, parameters, outputs, size, cones, engine."""
        parameters = ", ".join(f"{p.name} {p.shape}" for p in self.parameters)
        outputs = ", ".join(f"{o.name} {o.shape}" for o in self.outputs)
        cones = ", ".join(
            f"{count} x {cone.name}({cone.dim})" if cone.dim > 1 else f"{count} {cone.name}" for cone, count in self.structure.cones.blocks
        )
        return (
            f"parameters: {parameters or 'none'}; outputs: {outputs}; n={self.structure.n}, m={self.structure.m}; "
            f"cones: {cones or 'none'}; solver: {self.search.describe()}"
        )

    def __repr__(self) -> str:
        return f"CompiledProblem({self.describe()})"

    def report(self) -> str:
        """What each pass did, as a compiler would print it."""
        return report(self)

    def save(self, path: str | Path) -> None:
        """Write the compiled problem to one file that `layercompiler.load` reads, also where CVXPY is not installed."""
        options = {k: v for k, v in self.options.__dict__.items() if k != "executor"}
        save(path, self.program, {"solver": self.solver, "on_error": self.on_error, "options": options})

    def to(self, framework: str) -> Any:
        """The same compiled problem as a layer of a framework, without compiling again."""
        return layer(self, framework)


def _restored_info(status: np.ndarray) -> Info:
    zeros = np.zeros(status.shape, int)
    flags = np.zeros(status.shape, bool)
    return Info(status, np.full(status.shape, np.nan), zeros, zeros, flags, ~flags, np.full(status.shape, "restored", dtype=object), 0.0)


def _fingerprint(program: ConeProgram) -> str:
    """Hash of everything that decides what a call means, less the names that CVXPY numbers by itself."""
    s, outputs = program.structure, (*program.outputs, program.value)
    digest = hashlib.sha256()
    named = [(_given(p.name), p.shape, p.attributes) for p in program.parameters]
    shapes = [(_given(o.name), o.shape, o.source, o.exponential, o.sign) for o in outputs]
    blocks = [b for m in program.maps for b in m.blocks]
    digest.update(repr((program.kind, s.n, s.cones.blocks, named, shapes, program.channels, [b.channel for b in blocks])).encode())
    pattern = (s.P_rows, s.P_cols, s.A_rows, s.A_cols)
    for index in (*pattern, *(i for b in (*blocks, *outputs) for i in (b.rows, b.cols))):
        digest.update(np.ascontiguousarray(index, dtype=np.int64).tobytes())
    for numbers in (*(m.constant for m in program.maps), *(b.coefs for b in (*blocks, *outputs))):
        digest.update(numbers.tobytes())
    return digest.hexdigest()[:32]


def _given(name: str) -> str:
    return "" if re.fullmatch(r"(param|var)\d+", name) else name
