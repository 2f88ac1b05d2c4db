"""The run time of linear and quadratic programs on the dense kernels: points come back exact, with the factors that differentiate them.

Programs written as matrices (`layercompiler.QP`) go to the kernel as they are given, and gradients come back in that form. Others go
through the parameter map and the presolve of `CompiledProblem`. What the kernel does not solve is solved by the other engines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from layercompiler import kernels
from layercompiler.cones.base import KINK
from layercompiler.derivatives.dense import SINGULAR, DenseLinearization, DenseMap
from layercompiler.derivatives.residual_map import Point
from layercompiler.derivatives.scaling import Equilibrator, Scaling
from layercompiler.errors import OptionError
from layercompiler.kernels import DenseSolution
from layercompiler.plan.closest import ClosestEvaluation
from layercompiler.plan.compiled import CompiledProblem
from layercompiler.plan.crossover import dense_pays
from layercompiler.plan.evaluation import Bound, Evaluation
from layercompiler.plan.matrices import Call, Matrices, MatrixEvaluation
from layercompiler.plan.search import Search, certified
from layercompiler.plan.smoothed import smoothed
from layercompiler.programs.cone import ConeProgram, Data
from layercompiler.programs.presolve import eliminate
from layercompiler.solvers import Options, Raw
from layercompiler.solvers.closest import Closest, ClosestPoints
from layercompiler.solvers.dense_qp import DenseEngine
from layercompiler.status import Info, LateInfo, Status


@dataclass
class Answer:
    """What became of a batch: points in the coordinates of the reduced program, and the factors where they are those of all points."""

    x: np.ndarray
    v: np.ndarray
    y: np.ndarray
    status: np.ndarray
    norm: np.ndarray
    margin: np.ndarray
    reach: np.ndarray
    iterations: np.ndarray
    engine: np.ndarray
    factors: Any
    closest: tuple[np.ndarray, ClosestPoints] | None = None  # instances answered by the closest program
    many: np.ndarray | None = None  # instances whose solution another engine has found to be one of many


_MAYBE = (Status.FAILED, Status.PRIMAL_INFEASIBLE)


def compile_program(program: ConeProgram, solver: str, on_error: str, options: Options) -> CompiledProblem:
    """The run time of a program: on the dense kernels where they are asked for, or where they are there and faster by the model."""
    name = solver.lower()
    if on_error == "closest" and options.smoothing:
        raise OptionError("a program that cannot be satisfied has no center", expected="on_error='closest' or smoothing, not both")
    if on_error == "closest" or (name == "auto" and kernels.available() and dense_pays(eliminate(program).structure, program.kind)):
        return DenseProblem(program, solver, on_error, options)
    return (DenseProblem if name == "dense_qp" else CompiledProblem)(program, solver, on_error, options)


class DenseProblem(CompiledProblem):
    """A compiled problem with zero and nonnegative cones only, on the dense kernels; see `CompiledProblem`."""

    def _plan(self, solver: str) -> None:
        samples = self._samples()
        reason = dense_pays(self.structure, self.program.kind) if solver.lower() == "auto" else "asked for"
        self.dense = DenseEngine(self.structure)
        self.map = DenseMap(self.structure, samples, self.dense)
        self.search = Search(self.structure, self.map, "dense_qp", reason)
        self.matrices = Matrices.of(self.program)
        self.closest = Closest(self.structure, self.dense.kernel.equalities)
        if self.on_error == "closest" and not self.closest.affordable:
            size = self.structure.n + self.structure.m
            raise OptionError("the closest program is found on dense matrices", expected="at most 700 variables and rows", got=str(size))

    @cached_property
    def rest(self) -> CompiledProblem:
        """The same program on the other engines, for what the kernel does not solve."""
        return CompiledProblem(self.program, "auto", "flag", self.options)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """See `CompiledProblem.fallbacks`."""
        return "certificates of infeasibility", "its long runs", self.rest.search.first, *self.rest.fallbacks

    @property
    def refining(self) -> str:
        """See `CompiledProblem.refining`."""
        single = self.matrices is not None and self.options.precision == "single"
        more = ", but those of float32 tensors float32 where that tells the active rows" if single else ""
        return f"none: the points of the kernels are exact{more}"

    def evaluate(self, arrays: Sequence[Any], *, warm_start: Any = None, options: Options | None = None) -> Evaluation:
        """See `CompiledProblem.evaluate`."""
        began = time.perf_counter()
        options = options or self.options
        threads = self._threads(options)
        if self.matrices is not None:  # derivatives read them again, whatever the caller writes to them by then
            arrays = [a.copy() if isinstance(a, np.ndarray) and a.flags.writeable else a for a in arrays]
        quick = self.matrices.read(arrays) if self.matrices is not None else None
        found = None
        if self.matrices is not None and quick is not None and warm_start is None and options.max_iterations is None:
            found = self.matrices.kernel.solve(*quick.operands, threads=threads, quick=True, time_limit=options.time_limit)
            if not found.troubles:
                evaluation = self.matrix_evaluation(arrays, quick, found, threads, began)
                if evaluation.info.degenerate.any():
                    evaluation.info = self._doubted(evaluation.info, lambda: (evaluation.bound, evaluation.point, None))
                return smoothed(evaluation, options)
        values = self.reader.read(arrays, options.check_domain, raise_nonfinite=self.on_error != "flag")
        bound = Bound.of(self, values)
        answer = self._solve(bound, values, options, self._start(warm_start, values), began, threads, found)
        point = self._point(bound, answer)
        linear: Any = None
        if answer.factors is not None:
            linear = DenseLinearization(self.map, bound.scaled, point, answer.factors, answer.reach, threads)
        info = self._facts(answer, values.batch, began)
        solved = answer.status == Status.SOLVED
        if (solved & ~(answer.reach <= SINGULAR)).any():
            linear = linear or self.map.linearize(bound.scaled, point, threads)
        info = self._doubted(info, lambda: (bound, point, linear))
        evaluation = Evaluation(self, bound, point, linear, info)
        if answer.closest is not None:
            evaluation = ClosestEvaluation(self, bound, point, linear, info, *answer.closest, threads)
        if self.on_error != "flag" and not info.ok.all():
            evaluation.raise_failures()
        return smoothed(evaluation, options)

    def matrix_evaluation(
        self, arrays: Sequence[Any], call: Call, found: DenseSolution, threads: int, began: float | None = None
    ) -> MatrixEvaluation:
        """The evaluation of a program written as matrices of which every instance is solved."""
        assert self.matrices is not None
        info = self._facts(_answer(found), call.batch, time.perf_counter() if began is None else began)
        return MatrixEvaluation(self, self.matrices, arrays, call, found, info, threads)

    def restore(self, arrays: Sequence[Any], z: np.ndarray, options: Options | None = None) -> Evaluation:
        """See `CompiledProblem.restore`."""
        plain = super().restore(arrays, z, options)
        if self.on_error != "closest":
            return plain
        bound, point = plain.bound, plain.point
        far = self.closest.least(bound.scaled, point.x).far
        far[plain.bad] = False
        index, threads = np.flatnonzero(far), self._threads(options or self.options)
        if len(index) == 0:
            return plain
        found = self.closest.resume(bound.scaled.take(index), point.x[index], point.v[index], threads)
        point.y[index] = found.y
        return ClosestEvaluation(self, bound, point, None, plain.info, index, found, threads)

    def _threads(self, options: Options) -> int:
        return options.workers or self.threads

    def _solve(
        self,
        bound: Bound,
        values: Any,
        options: Options,
        start: np.ndarray | None,
        began: float,
        threads: int,
        found: DenseSolution | None,
    ) -> Answer:
        """The kernel, and the other engines for what it leaves open."""
        n, points = self.structure.n, None
        if start is not None:
            ok = np.isfinite(start).all(axis=1)
            flat = np.where(ok[:, None], start, 0.0)
            points = (flat[:, :n], flat[:, n:])
        if options.max_iterations is not None:  # pivots are none
            answer = _nothing(n, self.structure.m, values.count)
        else:
            data, left = _sized(bound.scaled, values.count), _left(options, began)
            answer = _answer(found or self.dense.run(data, threads, start=points, quick=True, time_limit=left))
        if points is not None:
            answer.engine[ok & (answer.status == Status.SOLVED) & (answer.iterations == 0)] = "warm start"
        self._doubt(answer, bound)
        answer.status[~values.finite] = Status.NONFINITE_INPUT
        if self.on_error == "closest":
            self._approach(answer, np.flatnonzero(np.isin(answer.status, _MAYBE)), bound, options.tolerance, threads)
        open_ = np.flatnonzero(answer.status == Status.FAILED)
        for further in (self._persist, self._rescue) if options.max_iterations is None else (self._rescue,):
            left = _left(options, began)
            if left == 0.0:
                answer.status[open_] = Status.TIME_LIMIT
                break
            if len(open_):
                open_ = further(answer, open_, bound, values, replace(options, time_limit=left, workers=threads))
        return answer

    def _doubt(self, answer: Answer, bound: Bound) -> None:
        """Open again what is said to have no solution and has no certificate."""
        part = np.flatnonzero((answer.status == Status.PRIMAL_INFEASIBLE) | (answer.status == Status.DUAL_INFEASIBLE))
        if len(part):
            none = np.zeros((len(part), self.structure.m))
            raw = Raw(answer.x[part], answer.y[part], none, answer.status[part], answer.iterations[part])
            answer.status[part[~certified(self.structure, bound.scaled.take(part), bound.products.take(part), raw)]] = Status.FAILED

    def _persist(self, answer: Answer, index: np.ndarray, bound: Bound, values: Any, options: Options) -> np.ndarray:
        """Certificates for those of the instances `index` without a solution, the kernel's long runs for the others; what is left."""
        threads = self._threads(options)
        if self.closest.affordable:
            data = bound.scaled.take(index)
            least = self.closest.violation(data, threads)
            at = index[least.far]
            answer.status[at], answer.y[at] = Status.PRIMAL_INFEASIBLE, least.s[least.far]
            rest = index[~least.far]
            if len(rest):
                d, falls = self.closest.direction(bound.scaled.take(rest), threads)
                answer.status[rest[falls]], answer.x[rest[falls]] = Status.DUAL_INFEASIBLE, d[falls]
            self._doubt(answer, bound)
            index = index[answer.status[index] == Status.FAILED]
        if len(index) == 0:
            return index
        found = self.dense.run(bound.scaled.take(index), threads, time_limit=options.time_limit)
        for name in ("x", "v", "y", "status", "norm", "margin", "reach"):
            getattr(answer, name)[index] = getattr(found, name)
        answer.iterations[index] += found.iterations
        answer.factors = None  # those of these points are made when they are asked for
        self._doubt(answer, bound)
        return index[answer.status[index] == Status.FAILED]

    def _approach(self, answer: Answer, index: np.ndarray, bound: Bound, tolerance: float, threads: int) -> None:
        """Answer those of the instances `index` that cannot be satisfied by their closest programs."""
        if len(index) == 0:
            return
        least = self.closest.violation(bound.scaled.take(index), threads)
        far = index[least.far]
        if len(far) == 0:
            return
        found = self.closest.solve(bound.scaled.take(far), least.take(least.far), threads)
        answer.closest = (far, found)
        answer.x[far], answer.v[far], answer.y[far] = found.x, found.v, found.y
        answer.norm[far], answer.margin[far], answer.reach[far] = found.norm, found.margin, 0.0
        answer.status[far] = np.where(found.norm <= tolerance, Status.SOLVED, found.status)
        answer.iterations[far] += found.iterations
        answer.engine[far] = "closest"

    def _rescue(self, answer: Answer, index: np.ndarray, bound: Bound, values: Any, options: Options) -> np.ndarray:
        """The other engines for the instances `index`; what none of them solves."""
        arrays = [
            (flat if len(flat) == 1 else flat[index]).reshape(-1, *p.shape) for flat, p in zip(values.flat, self.parameters, strict=True)
        ]
        if all(len(a) == 1 for a in arrays):  # also where there are no parameters: then one instance stands for all
            arrays = [np.broadcast_to(a, (len(index), *a.shape[1:])) for a in arrays]
        found = self.rest.evaluate(arrays, options=replace(options, check_domain=False))
        status = found.info.status.reshape(-1)
        index = index[: len(status)]
        e = self.elimination
        x, y = (found.x[:, e.keep_x], found.y[:, e.keep_y]) if e.active else (found.x, found.y)
        ok = status == Status.SOLVED
        answer.status[index], answer.norm[index] = status, found.info.residual.reshape(-1)
        answer.iterations[index] += found.info.iterations.reshape(-1)
        answer.engine[index] = found.info.engine.reshape(-1)
        at = index[ok]
        if len(at) == 0:
            return index
        part = bound.scaled.take(at)
        x, y = x[ok], y[ok]
        s = part.b - bound.products.take(at).A(x)
        zero = self.dense.kernel.equalities
        # The factors of these points are made when they are asked for.
        answer.x[at], answer.y[at] = x, y
        answer.v[at] = np.where(np.arange(y.shape[1]) < zero, y, np.where(y > s, y, -np.maximum(s, 0.0)))
        smooth = ~found.info.degenerate.reshape(-1)[ok]
        answer.margin[at] = np.where(smooth, np.inf, 0.0)
        answer.reach[at] = 0.0
        many = np.zeros(values.count, bool)
        many[at] = ~found.info.unique.reshape(-1)[ok]
        answer.many = many
        answer.factors = None
        return index[~ok]

    def _point(self, bound: Bound, answer: Answer) -> Point:
        bad = answer.status != Status.SOLVED
        x, v = answer.x, answer.v
        if bad.any():
            x, v = x.copy(), v.copy()
            x[bad], v[bad] = 0.0, 0.0
        y = self.structure.cones.project_dual(v).y
        if answer.closest is not None:
            y[answer.closest[0]] = answer.closest[1].y
        none = np.zeros((len(x), 0))
        return Point(self.structure.cones, x, v, y, none, none, answer.norm)

    def _doubted(self, info: Info, at: Callable[[], tuple[Bound, Point, Any]]) -> Info:
        """The facts of a batch, of which those that kinks and singular systems make doubtful will be looked at."""
        flat = [a.reshape(-1) for a in (info.status == Status.SOLVED, info.degenerate, info.unique)]

        def flags() -> tuple[np.ndarray, ...]:
            return tuple(a.reshape(info.status.shape) for a in self._flags(*at(), *flat))

        facts = {f.name: getattr(info, f.name) for f in fields(Info) if f.name not in ("degenerate", "unique")}
        return LateInfo(flags, **facts)

    def _calm(self, bound: Bound, point: Point, linear: Any) -> tuple[Bound, Point, Any]:
        """The same in equilibrated coordinates, where sizes can be compared."""
        data, scaling = Equilibrator(self.structure)(bound.scaled)
        if scaling is None:
            return bound, point, linear
        v = np.where(point.y != 0.0, point.v / scaling.y, point.v / scaling.s)
        scaled = replace(point, x=point.x / scaling.x, v=v, y=point.y / scaling.y)
        return replace(bound, scaled=data, scaling=scaling), scaled, _Scaled(linear, scaling)

    def _facts(self, answer: Answer, shape: tuple[int, ...], began: float) -> Info:
        solved = answer.status == Status.SOLVED
        return Info(
            status=answer.status.reshape(shape),
            residual=answer.norm.reshape(shape),
            iterations=answer.iterations.reshape(shape),
            refinements=np.zeros(shape, int),
            degenerate=(solved & (answer.margin <= KINK)).reshape(shape),
            unique=(np.ones(len(solved), bool) if answer.many is None else ~answer.many).reshape(shape),
            engine=answer.engine.reshape(shape),
            time=time.perf_counter() - began,
        )


@dataclass(frozen=True)
class _Scaled:
    """A linearization in scaled coordinates."""

    linear: DenseLinearization
    scaling: Scaling

    def solve(self, r_x: np.ndarray, h: np.ndarray, refine: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Linearization.solve`."""
        k = self.scaling
        u, t, residual = self.linear.solve(r_x / k.r_x, h / k.r_y, refine)
        return u / k.x, t / k.y, residual


def _answer(found: DenseSolution) -> Answer:
    engine = np.full(len(found.x), "dense_qp", dtype=object)
    return Answer(found.x, found.v, found.y, found.status, found.norm, found.margin, found.reach, found.iterations, engine, found.factors)


def _nothing(n: int, m: int, count: int) -> Answer:
    x, v = np.zeros((count, n)), np.zeros((count, m))
    far, none = np.full(count, np.inf), np.zeros(count)
    status, engine = np.full(count, Status.FAILED, np.int8), np.full(count, "", dtype=object)
    return Answer(x, v, v.copy(), status, far, none, none.copy(), np.zeros(count, int), engine, None)


def _left(options: Options, began: float) -> float | None:
    """Seconds that are left of the time limit, or None where there is none."""
    return None if options.time_limit is None else max(options.time_limit - (time.perf_counter() - began), 0.0)


def _sized(data: Data, count: int) -> Data:
    """`data` with a q for each instance, which tells the batch."""
    return data if len(data.q) == count else replace(data, q=np.broadcast_to(data.q, (count, data.q.shape[1])))
