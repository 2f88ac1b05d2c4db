"""The solve of a batch on the host: numpy loops around the residuals of a framework, on ever fewer instances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from layercompiler import arrays
from layercompiler.errors import BuildError
from layercompiler.programs.least_squares import LeastSquaresProgram
from layercompiler.solvers.least_squares import descent
from layercompiler.solvers.least_squares.choose import normal
from layercompiler.solvers.least_squares.descent import RUNNING, Instances, State, Step
from layercompiler.solvers.least_squares.evaluation import Evaluation, Point, stages
from layercompiler.solvers.least_squares.linear import LanesFactor, Normal
from layercompiler.solvers.least_squares.native import Native, UnsupportedError
from layercompiler.solvers.least_squares.options import LeastSquaresOptions
from layercompiler.solvers.least_squares.structure import Structure
from layercompiler.status import Status

ROUGH = 3e-4  # relative gradient at which Newton steps take over
POLISHED = 1e-13
NEWTON = 8
AGREE = 1e-7  # between given and automatic Jacobians, which differ by rounding only
STAGE = 5  # steps of each stage of a graduated loss
_SMALL = 64  # instances below which nothing is gained by leaving finished ones out


@dataclass(frozen=True)
class Result:
    """What a solve found, numpy arrays of B instances.

    Attributes:
        values: (B, ambient).
        status: (B,) `Status` codes.
        residual: (B,) relative size of the gradient.
        gradient: (B,) its largest absolute component.
        cost: (B,) value of the objective.
        iterations: (B,) steps tried.
        refinements: Newton steps of the batch.
        history: (steps + 1, B) cost after every step of the descent, if recorded.
    """

    values: np.ndarray
    status: np.ndarray
    residual: np.ndarray
    gradient: np.ndarray
    cost: np.ndarray
    iterations: np.ndarray
    refinements: int = 0
    history: np.ndarray | None = field(default=None, repr=False)


def _without_jacobians(program: LeastSquaresProgram) -> LeastSquaresProgram:
    return replace(program, blocks=tuple(replace(b, jacobian=None) for b in program.blocks))


class Solver:
    """A program made ready for one framework; immutable, so that threads may share it."""

    def __init__(self, program: LeastSquaresProgram, xp: Any, options: LeastSquaresOptions, method: str) -> None:
        self.program, self.xp, self.options, self.method = program, xp, options, method
        self.structure = Structure(program)
        self.evaluation = Evaluation(self.structure, xp)
        self.given = tuple(b.name for b in program.blocks if b.jacobian is not None)
        self._traced: dict[Any, Callable[..., Any]] = {}

    @cached_property
    def native(self) -> Native | None:
        """The compiled evaluation, where the program has one."""
        if not self.options.trace or self.given:
            return None
        try:
            return Native(self.evaluation)
        except UnsupportedError:
            return None

    @cached_property
    def normal(self) -> Normal:
        """The linear solve of the host."""
        names = self.options.eliminate
        return normal(self.structure, self.options.linear, (names,) if isinstance(names, str) else names)

    def call(self, kind: str, shared: tuple[bool, ...]) -> Callable[..., Any]:
        """A function of the evaluation as one of flat arrays, traced."""
        found = self._traced.get((kind, shared))
        if found is None:
            e = self.evaluation
            xp = self.xp
            functions: dict[str, Callable[..., Any]] = {
                "linearize": lambda values, *theta: tuple(e.linearize(values, theta, shared)),
                "widened": lambda values, widen, *theta: tuple(e.linearize(values, theta, shared, widen)),
                "hessian": lambda values, *theta: e.hessian(values, theta, shared),
                "pull": lambda values, u, *theta: pull(xp, e, values, u, theta, shared),
                "difference": lambda values, u, *theta: difference(xp, e, values, u, theta, shared, self.options.epsilon),
            }
            f = functions[kind]
            found = self._traced[kind, shared] = xp.trace(f) if self.options.trace else f
        return found

    def instances(self, theta: Sequence[Any], shared: tuple[bool, ...], widen: float = 1.0) -> Instances:
        """Functions of numpy arrays: compiled ones, or around those of the framework."""
        native, host = self.native, arrays.get("numpy")

        def solve(entries: np.ndarray, diagonal: np.ndarray, rhs: np.ndarray, refine: int) -> tuple[np.ndarray, np.ndarray]:
            factor = self.normal.factor(entries, diagonal)
            return factor.solve(rhs, refine), factor.pivots

        if native is not None:
            inputs, steps = native.arrays(theta, shared, widen)
            return Instances(
                host,
                lambda v: native.evaluate(v, inputs, steps),
                lambda v: native.hessian(v, inputs, steps),
                lambda v, s: self.evaluation.retract(v, s, host),
                solve,
                self.structure,
            )
        xp, e = self.xp, self.evaluation
        kind, extra = ("linearize", ()) if widen == 1.0 else ("widened", (xp.new(widen),))
        linearize, second = self.call(kind, shared), self.call("hessian", shared)

        def evaluate(values: np.ndarray) -> Point:
            return Point(*(xp.numpy(a) for a in linearize(xp.new(values), *extra, *theta)))

        def hessian(values: np.ndarray) -> np.ndarray:
            return xp.numpy(second(xp.new(values), *theta))

        return Instances(host, evaluate, hessian, lambda v, s: e.retract(v, s, host), solve, self.structure)

    def solve(
        self,
        values: np.ndarray,
        theta: Sequence[Any],
        shared: tuple[bool, ...],
        callback: Callable[..., Any] | None = None,
        record: list[tuple[float, Step]] | None = None,
    ) -> Result:
        """Descend from the values (B, ambient) for every instance.

        Args:
            values: Starting values, float64.
            theta: Parameters in the framework's arrays, detached: (B, *shape), or (*shape) where shared.
            shared: Which parameters the whole batch shares.
            callback: Called after every step with (iteration, cost (B,), gradient measure (B,), values (B, ambient)); stops where it
                returns True.
            record: Gets (widening of graduated losses, `Step`) of every step of the descent, which then goes all the way: Newton steps
                only polish what came within the tolerance by itself.
        """
        options = self.options
        if self.native is not None and self.native.changed():
            del self.native
            self.__dict__.pop("whole", None)
        if not len(values):
            empty = np.zeros(0)
            return Result(values, np.zeros(0, np.int8), empty, empty, empty, np.zeros(0, int))
        if self.whole and callback is None and record is None:
            return self._compiled(values, theta, shared)
        told = None if callback is None else _Told(callback)
        with np.errstate(all="ignore"):
            history: list[np.ndarray] | None = [] if callback is not None else None
            for widen in stages(self.program)[:-1]:
                instances = self.instances(theta, shared, widen)
                state = descent.start(instances, values, options, self.method)
                taken: list[Step] | None = None if record is None else []
                state, _ = self._descend(instances, state, options.tolerance, STAGE, None, None, taken=taken)
                if record is not None:
                    record += [(widen, step) for step in taken or ()]
                values = state.values
            instances = self.instances(theta, shared)
            state = descent.start(instances, values, options, self.method)
            rough = options.polish and record is None
            refinements, taken, came = 0, None if record is None else [], state
            for target in (max(ROUGH, options.tolerance), options.tolerance) if rough else (options.tolerance,):
                came = state = self._batch(state, theta, shared, target, told, history, taken)
                if told is not None and told.stopped:
                    break
                if options.polish:
                    state, steps = self._polish(state, theta, shared)
                    refinements += steps
                again = (descent.finish(instances, state, options.tolerance)[0] != 0) & (state.status == 0)
                if not again.any():
                    break
                state = state._replace(status=np.where(again, RUNNING, state.status), growth=np.full_like(state.growth, 2.0))
            status, measure = descent.finish(instances, state, options.tolerance)
            if record is not None:
                record += [(1.0, step) for step in taken or ()]
                status = arrived(instances, came, status, options.tolerance)
        if self.given:
            self.check(state.values, state.gradient, theta, shared)
        held = instances.held(state.values, state.gradient)
        gradient = state.gradient if held is None else np.where(held, 0.0, state.gradient)
        largest = np.abs(gradient).max(axis=1, initial=0.0)
        past = None if not history else np.stack(history)
        return Result(state.values, status.astype(np.int8), measure, largest, state.cost, state.iterations, refinements, past)

    @cached_property
    def whole(self) -> bool:
        """Whether solves run in compiled code from start to end."""
        easy = self.structure.bounds is None and len(stages(self.program)) == 1 and self.structure.n > 0
        return easy and self.method != "dogleg" and self.options.linear in ("auto", "lanes") and self.native is not None

    def _compiled(self, values: np.ndarray, theta: Sequence[Any], shared: tuple[bool, ...]) -> Result:
        assert self.native is not None
        o, (inputs, steps) = self.options, self.native.arrays(theta, shared)
        found = self.native.descent.solve(
            values, inputs, steps, o.tolerance, o.damping, o.max_iterations, o.adaptive, o.ellipsoidal, o.polish,
            self.method == "gauss_newton",
        )  # fmt: skip
        return Result(*found)

    def lift(self, values: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
        """Cotangents of the values (B, ambient) as cotangents of the unknown (B, n)."""
        return (self.evaluation if self.native is None else self.native).lift(values, cotangent)

    def pull(self, values: np.ndarray, u: np.ndarray, theta: Sequence[Any], shared: tuple[bool, ...]) -> Sequence[Any]:
        """Gradients in theta, numpy arrays or the framework's; see the function `pull`."""
        if self.native is not None and self.options.backward != "dlm":
            return self.native.pull(values, u, *self.native.arrays(theta, shared))
        kind = "difference" if self.options.backward == "dlm" else "pull"
        return self.call(kind, shared)(self.xp.new(values), self.xp.new(u), *theta)

    def gap(self, values: Any, gradient: Any, theta: Any, shared: Any) -> Any:
        """(B,) largest difference between a gradient of given Jacobians and that of automatic derivatives, relative to |J| |r|."""
        xp = self.xp
        true = Evaluation(Structure(_without_jacobians(self.program)), xp).linearize(values, theta, shared)
        size = xp.sqrt(true.diagonal * true.energy[:, None]) + np.finfo(float).tiny
        return xp.max(xp.abs(true.gradient - gradient) / size, axis=1)

    def check(self, values: np.ndarray, gradient: np.ndarray, theta: Any, shared: Any) -> None:
        """Hold the gradient of given Jacobians to that of automatic derivatives: the status is no better than the gradient is.

        Raises:
            BuildError: They differ.
        """
        xp = self.xp
        gap = xp.numpy(self.gap(xp.new(values), xp.new(gradient), theta, shared))
        worst = np.max(gap, where=np.isfinite(gap), initial=0.0)
        if worst > AGREE:
            raise BuildError(
                "the given Jacobian is not the derivative of the residual",
                where=", ".join(f"factor '{name}'" for name in self.given),
                expected=f"gradients within {AGREE:g} of each other, relative to |J| |r|",
                got=f"{worst:.1e}",
                mend="mend `jacobian`, with columns along tangents, or leave it out",
            )

    def _batch(self, state: State, theta: Any, shared: Any, target: float, callback: Any, history: Any, taken: Any) -> State:
        """Descend, and go on with half of the batch whenever half of it is done."""
        left = self.options.max_iterations - int(state.iterations.max(initial=0))
        every = np.arange(len(state.cost))
        index, whole = every, state
        while True:
            subset = theta if index is every else self.take(theta, shared, index)
            half = 0 if callback is not None or taken is not None else (len(index) + 1) // 2
            state, left = self._descend(self.instances(subset, shared), state, target, left, half, callback, history, taken)
            whole = state if index is every else State(*(_put(a, index, b) for a, b in zip(whole, state, strict=True)))
            running = np.flatnonzero(state.status == RUNNING)
            if not len(running) or left <= 0:
                return whole  # also where a callback stopped
            keep = np.concatenate([running, np.flatnonzero(state.status != RUNNING)])[: max(half, len(running))]
            index, state = index[keep], State(*(a[keep] for a in state))

    def _descend(
        self,
        instances: Instances,
        state: State,
        target: float,
        limit: int,
        half: int | None,
        callback: Any,
        history: Any = None,
        taken: list[Step] | None = None,
    ) -> tuple[State, int]:
        while limit > 0:
            running = int((state.status == RUNNING).sum())
            if running == 0 or (half and len(state.cost) > _SMALL and running <= half):
                break
            if history is not None:
                history.append(state.cost)
            state, step = descent.attempt(instances, state, self.options, self.method, target)
            if taken is not None:
                taken.append(step)
            limit -= 1
            if callback is not None:
                if callback(int(state.iterations.max()), state.cost, state.measure, state.values):
                    limit = 0
        return state._replace(status=np.where((state.status == RUNNING) & (state.measure <= target), 0, state.status)), limit

    def _polish(self, state: State, theta: Any, shared: Any) -> tuple[State, int]:
        """Newton steps for the instances that came near, or got stuck near, a stationary point."""
        measure = state.measure
        near = np.flatnonzero((measure <= ROUGH) & (measure > POLISHED) & (state.status != Status.FAILED))
        if not len(near):
            return state, 0
        if 2 * len(near) > len(measure) or len(measure) <= _SMALL:
            near = np.arange(len(measure))
        instances = self.instances(theta if len(near) == len(measure) else self.take(theta, shared, near), shared)
        part = State(*(a[near] for a in state))
        ok = (measure[near] <= ROUGH) & (part.status != Status.FAILED)
        part = part._replace(status=np.where(ok, RUNNING, part.status))
        steps = 0
        while (part.status == RUNNING).any() and steps < NEWTON:
            part = descent.refine(instances, part, POLISHED)
            part = part._replace(status=np.where((part.status == RUNNING) & (part.measure <= POLISHED), 0, part.status))
            steps += 1
        part = part._replace(status=np.where(ok, 0, part.status))
        return (part if len(near) == len(measure) else State(*(_put(a, near, b) for a, b in zip(state, part, strict=True)))), steps

    def take(self, theta: Any, shared: Any, index: np.ndarray) -> tuple[Any, ...]:
        """Parameters of some of the instances."""
        at = self.xp.new(index)
        return tuple(t if s else self.xp.take(t, at, axis=0) for t, s in zip(theta, shared, strict=True))

    def factor(self, values: np.ndarray, theta: Any, shared: Any, exact: bool = True) -> tuple[Any, np.ndarray, np.ndarray | None]:
        """Factors of the exact (or Gauss-Newton) Hessian at the values, its smallest pivots (B,), and which coordinates a bound holds."""
        if exact and self.whole:
            assert self.native is not None
            factor = LanesFactor(self.native.descent.factor(values, *self.native.arrays(theta, shared)))
            return factor, factor.pivots, None
        if exact and self.native is not None and self.structure.bounds is None:
            factor = self.normal.factor(
                self.native.hessian(values, *self.native.arrays(theta, shared)), np.zeros((len(values), self.structure.n))
            )
            return factor, factor.pivots, None
        with np.errstate(all="ignore"):
            instances = self.instances(theta, shared)
            point = None if exact and instances.bounds is None else instances.evaluate(values)
            held = None if point is None else instances.held(values, point.gradient)
            entries = instances.hessian(values) if point is None or exact else point.entries
            zero = np.zeros((len(values), self.structure.n))
            factor = self.normal.factor(instances.masked(entries, held), zero if held is None else np.where(held, 1.0, 0.0))
        return factor, factor.pivots, held


def arrived(instances: Instances, came: State, status: Any, tolerance: float) -> Any:
    """The status of instances whose steps are differentiated: no better than where the steps came to, whatever polished it after."""
    xp = instances.xp
    alone, _ = descent.finish(instances, came, tolerance)
    return xp.where(status == int(Status.SOLVED), alone, status)


class _Told:
    """A callback that remembers whether it stopped the solve."""

    def __init__(self, callback: Callable[..., Any]) -> None:
        self.callback, self.stopped = callback, False

    def __call__(self, *told: Any) -> bool:
        self.stopped = self.stopped or bool(self.callback(*told))
        return self.stopped


def pull(xp: Any, e: Evaluation, values: Any, u: Any, theta: Sequence[Any], shared: Sequence[bool]) -> tuple[Any, ...]:
    """Gradients in theta of -<F, u>, F the gradient of the objective along tangents: what the implicit function theorem asks for."""
    zero = xp.zeros_like(u)

    def along(*parameters: Any) -> Any:
        return -xp.sum(xp.jvp(lambda t: e.objective(e.shift(values, t), parameters, shared), (zero,), (u,))[1])

    return xp.vjp(along, *theta)[1](xp.ones_like(u[0, 0])) if theta else ()


def difference(
    xp: Any, e: Evaluation, values: Any, u: Any, theta: Sequence[Any], shared: Sequence[bool], epsilon: float
) -> tuple[Any, ...]:
    """`pull` by a central difference along u, instead of a mixed second derivative.

    Source: Song, Schwing, Zemel, Urtasun 2016, "Training deep neural networks via direct loss minimization".
    """
    length = xp.sqrt(xp.sum(u * u, axis=1, keepdims=True))
    h = epsilon / xp.where(length > 0, length, xp.ones_like(length))

    def along(*parameters: Any) -> Any:
        ahead, behind = (e.objective(e.retract(values, s * h * u), parameters, shared) for s in (1.0, -1.0))
        return -xp.sum((ahead - behind) / (2 * h[:, 0]))

    return xp.vjp(along, *theta)[1](xp.ones_like(u[0, 0])) if theta else ()


def _put(whole: np.ndarray, index: np.ndarray, part: np.ndarray) -> np.ndarray:
    out = whole.copy()
    out[index] = part
    return out
