"""The run time of a least-squares program: arguments and starts in, solutions and statuses out; what every framework wraps."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import numpy as np

from layercompiler import arrays, frameworks
from layercompiler.derivatives.rule import attach
from layercompiler.errors import (
    BuildError,
    MissingDependencyError,
    NonFiniteInputError,
    OptionError,
    ShapeError,
    SolveError,
    StoreError,
    nearest,
)
from layercompiler.plan import report
from layercompiler.plan.arguments import Arguments, real
from layercompiler.plan.domain import Domains
from layercompiler.plan.minimizer import LeastSquaresInfo, LeastSquaresSolution
from layercompiler.programs.least_squares import LeastSquaresProgram
from layercompiler.solvers.least_squares import LeastSquaresOptions, Result, Solver
from layercompiler.solvers.least_squares.options import METHODS
from layercompiler.solvers.least_squares.traced import instances
from layercompiler.status import Status

# What is said of a start that asks for a derivative which it does not have.
FIXED = (
    "the start of a fixed element is not differentiated",
    "declare what is fixed and learned as a parameter, which factors read by data= or shared=; or pass a detached start",
)


class CompiledLeastSquares:
    """A least-squares problem made ready; immutable. `.to(framework)` makes a layer.

    Args:
        problem: A front end's problem with `lower(framework)`, or a program.
        method: "auto", "levenberg_marquardt", "gauss_newton" or "dogleg".
        on_error: "raise" or "flag".
        options: See `LeastSquaresOptions`.
        variables: Names of the outputs.
    """

    layer_kind = "least_squares.LeastSquaresLayer"

    def __init__(
        self,
        problem: Any,
        method: str = "auto",
        on_error: str = "raise",
        options: LeastSquaresOptions | None = None,
        variables: Sequence[Any] | None = None,
    ) -> None:
        method = "levenberg_marquardt" if method.lower() == "auto" else method.lower()
        if method not in METHODS:
            raise OptionError("unknown method", expected=f"'auto' or one of {list(METHODS)}", got=repr(method))
        self.problem, self.method, self.on_error = problem, method, on_error
        self.options = options or LeastSquaresOptions()
        self.variables = None if variables is None else tuple(str(v) for v in variables)
        self._prepared: dict[str, Prepared] = {}

    def prepare(self, framework: str) -> Prepared:
        """The program and its solver for a framework."""
        if framework not in self._prepared:
            program = self.problem
            if not isinstance(program, LeastSquaresProgram):
                program = program.lower(framework, self.variables)
            if program.framework not in (None, framework):
                raise OptionError("the residuals are written in another framework", expected=program.framework, got=framework)
            self._prepared[framework] = Prepared(program, framework, self.method, self.on_error, self.options)
        return self._prepared[framework]

    def to(self, framework: str) -> Any:
        """A layer of a framework."""
        return frameworks.layer(self, framework)

    def solve(self, *args: Any, init: Mapping[str, Any] | None = None, **named: Any) -> LeastSquaresSolution:
        """Solve for numpy arrays; see `LeastSquaresLayer.solve` of the frameworks. `callback` as there."""
        return self.to("numpy").solve(*args, init=init, **named)

    def save(self, path: Any) -> None:
        """Refused: residuals are functions.

        Raises:
            StoreError: Always.
        """
        raise StoreError(
            "a least-squares problem is not written to a file: its residuals are functions",
            where=str(path),
            mend="keep the code that makes the problem, and compile it again; parameters are saved by the framework",
        )

    def describe(self) -> str:
        """One line."""
        return f"least squares by {self.method.replace('_', '-')}, backward: {self.options.backward}"

    def choices(self) -> list[str]:
        """How it is solved and differentiated, as lines of a report."""
        return [
            f"solver        {self.method.replace('_', '-')}",
            f"derivative    {self.options.backward}",
            f"on error      {self.on_error}; solved means relative gradient <= {self.options.tolerance:g}",
        ]

    def report(self) -> str:
        """The variables and residuals, and how they are solved and differentiated; residual functions are traced for it."""
        return self.to("numpy").report()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_prepared"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _prepared={})


def compile_least_squares(problem: Any, request: Any) -> CompiledLeastSquares:
    """What `layercompiler.compile` does with a least-squares problem."""
    known = list(getattr(problem, "parameters", ()))
    if request.parameters is not None and [str(p) for p in request.parameters] != [getattr(p, "name", p) for p in known]:
        raise OptionError("the parameters of a least-squares problem are declared with it", expected=f"None or {known}")
    return CompiledLeastSquares(problem, request.solver, request.on_error, LeastSquaresOptions.of(request.options), request.variables)


@dataclass(frozen=True)
class Call:
    """One call made regular.

    Attributes:
        batch: Batch shape, `count` instances.
        theta: Parameters, (count, *shape), or (*shape) where `shared`.
        shared: Which parameters all instances share.
        start: (count, ambient) float64.
    """

    batch: tuple[int, ...]
    count: int
    theta: tuple[Any, ...]
    shared: tuple[bool, ...]
    start: np.ndarray


class Prepared:
    """A program, its solver, and the conventions of calls, for one framework."""

    def __init__(self, program: LeastSquaresProgram, framework: str, method: str, on_error: str, options: LeastSquaresOptions) -> None:
        self.program, self.framework, self.method, self.on_error, self.options = program, framework, method, on_error, options
        self.xp = arrays.get(framework)
        self.solver = Solver(program, self.xp, options, method)
        self.arguments = Arguments(cast(Any, SimpleNamespace(parameters=program.parameters, channels=())))
        self.domains = Domains(program, options.check_domain)
        self.short: Any = None  # a framework's short way for plain calls, with what it needs

    def report(self, choices: Sequence[str]) -> str:
        """What was made ready, with sizes, and then the `choices`."""
        program = self.program
        first = f"problem       nonlinear least squares, {len(program.parameters)} parameters, {len(program.outputs)} outputs"
        return "\n".join([first, *report.least_squares(program), *choices])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(p.name for p in self.program.parameters)

    @cached_property
    def slices(self) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
        """(start, stop, shape) of every output in the vector of all values."""
        names, starts = self.program.variable_names, self.program.ambient_offsets
        at = [names.index(n) for n in self.program.outputs]
        return tuple((int(starts[i]), int(starts[i + 1]), self.program.variables[i].shape) for i in at)

    @cached_property
    def default(self) -> np.ndarray:
        """(1, ambient) the declared start."""
        parts = [np.asarray(v.init, float).reshape(1, v.size) for v in self.program.variables]
        return np.concatenate(parts, axis=1) if parts else np.zeros((1, 0))

    def batch_shape(self, shapes: Sequence[tuple[int, ...]], init: Mapping[str, Any] | None) -> tuple[int, ...]:
        """Broadcast batch shape of parameters and starts."""
        batch = self.arguments.batch_shape(shapes)
        for name, value in (init or {}).items():
            if name not in self.program.variable_names:
                known = self.program.variable_names
                raise ShapeError(
                    f"there is no variable '{name}' to start", where="init", expected=f"some of {list(known)}", mend=nearest(name, known)
                )
            shape = self.program.variables[self.program.variable_names.index(name)].shape
            lead = tuple(np.shape(value))[: np.ndim(value) - len(shape)]
            if tuple(np.shape(value))[len(lead) :] != shape:
                raise ShapeError(
                    f"the start of '{name}' has the wrong shape", where="init", expected=f"(batch..., {shape})", got=str(np.shape(value))
                )
            try:
                batch = np.broadcast_shapes(batch, lead)
            except ValueError:
                raise ShapeError(
                    f"the batch of the start of '{name}' does not broadcast", where="init", expected=str(batch), got=str(lead)
                ) from None
        return tuple(batch)

    def start(self, batch: tuple[int, ...], init: Mapping[str, Any] | None) -> np.ndarray:
        """(count, ambient) starting values; `init` holds host arrays (batch..., *shape)."""
        if not init:
            return np.repeat(self.default, math.prod(batch), axis=0)
        parts = []
        for v in self.program.variables:
            given = np.asarray((init or {}).get(v.name, v.init), dtype=np.float64)
            if v.manifold.name != "euclidean" and v.name in (init or {}):
                bad = v.manifold.invalid(
                    arrays.get("numpy"), given.reshape(*given.shape[: given.ndim - len(v.shape)], v.elements, v.manifold.ambient)
                )
                if bad.any():
                    raise ShapeError(
                        f"the start of '{v.name}' holds numbers that are no elements of {v.manifold.name}",
                        where="init",
                        got=f"{int(bad.sum())} of {bad.size}",
                        mend="normalise rotations to length one; the order of the numbers is in the docstring of the group",
                    )
            parts.append(np.broadcast_to(given, (*batch, *v.shape)).reshape(math.prod(batch), v.size))
        return np.concatenate(parts, axis=1) if parts else np.zeros((math.prod(batch), 0))

    def regular(self, theta: Sequence[Any], start: np.ndarray, batch: tuple[int, ...]) -> Call:
        """The call with one batch axis; `theta` are arrays of the framework, (batch..., *shape) up to broadcasting."""
        count, out, shared = math.prod(batch), [], []
        for t, p in zip(theta, self.program.parameters, strict=True):
            lead = tuple(t.shape)[: len(t.shape) - len(p.shape)]
            one = math.prod(lead) == 1 and count > 0
            shared.append(one)
            out.append(
                self.xp.reshape(t, p.shape) if one else self.xp.reshape(self.xp.broadcast_to(t, (*batch, *p.shape)), (count, *p.shape))
            )
        return Call(batch, count, tuple(out), tuple(shared), start)

    def aligned(self, theta: Sequence[Any], batch: tuple[int, ...]) -> tuple[Any, ...]:
        """Parameters with one leading dimension for each of the batch, of size 1 where they are shared."""
        pairs = zip(theta, self.program.parameters, strict=True)
        return tuple(self.xp.reshape(t, ((1,) * (len(batch) + len(p.shape) - len(t.shape)) + tuple(t.shape))) for t, p in pairs)

    def stationarity(self, delta: Any, values: Any, *theta: Any) -> Any:
        """F of the derivative rule: gradient of the objective along tangents at `values` (batch..., ambient) moved by `delta`.

        Where a bound holds a coordinate with a gradient that pushes against it, the coordinate does not move.
        """
        xp, e = self.xp, self.solver.evaluation
        batch = tuple(delta.shape)[:-1]
        call = self.regular(theta, np.zeros(0), batch)
        flat, d = xp.reshape(values, (call.count, e.size)), xp.reshape(delta, (call.count, -1))

        # Along the tangents of the moved point, on the manifold: a chart that leaves it would add the curvature of the manifold.
        def gradient(step: Any, theta: Sequence[Any]) -> Any:
            moved = e.retract(flat, step)
            cost, pull = xp.vjp(lambda u: e.objective(e.shift(moved, u), theta, call.shared), xp.zeros_like(step))
            return pull(xp.ones_like(cost))[0]

        # A coordinate that a bound holds stays where it is: its row is its own step, and no other row knows of it.
        fixed = [xp.stop_gradient(t) for t in call.theta]
        held = instances(self.solver, fixed, call.shared).held(xp.stop_gradient(flat), gradient(xp.stop_gradient(d), fixed))
        if held is None:
            return xp.reshape(gradient(d, call.theta), tuple(delta.shape))
        free = gradient(xp.where(held, xp.zeros_like(d), d), call.theta)
        return xp.reshape(xp.where(held, d, free), tuple(delta.shape))

    def attached(self, values: Any, theta: Sequence[Any], on_error: str) -> Any:
        """Values (batch..., ambient) as a differentiable function of theta (aligned), by the derivative rule."""
        xp, e = self.xp, self.solver.evaluation
        batch = tuple(values.shape)[:-1]
        zero = xp.zeros_like(xp.broadcast_to(values[..., :1], (*batch, e.structure.n)))
        delta = attach(xp, self.stationarity, zero, (values, *theta), batch=len(batch), structure=("symmetric",), on_error=on_error)
        flat = e.retract(xp.reshape(values, (-1, e.size)), xp.reshape(delta, (-1, e.structure.n)))
        return xp.reshape(flat, tuple(values.shape))

    def sound(self, good: Any, values: Any, theta: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
        """Values (batch..., ambient) and parameters (batch..., *shape), where instances that are not `good` (batch..., bool) are copies of
        one that is: the derivatives of a failed instance are zero, and zero times what is not finite would not be.
        """
        xp, batch = self.xp, tuple(good.shape)
        count = math.prod(batch)
        number = xp.astype(xp.reshape(good, (count, 1)), values.dtype)
        first = (number > 0) & (xp.cumulative_sum(number, axis=0) == 1)
        some = xp.sum(number) > 0

        def mended(a: Any, shape: tuple[int, ...]) -> Any:
            rows = xp.reshape(xp.broadcast_to(a, (*batch, *shape)), (count, -1))
            row = xp.stop_gradient(xp.sum(xp.where(first, rows, xp.zeros_like(rows)), axis=0))
            row = xp.where(some, row, xp.ones_like(row))
            return xp.reshape(xp.where(number > 0, rows, row), (*batch, *shape))

        pairs = zip(theta, self.program.parameters, strict=True)
        return mended(values, (values.shape[-1],)), tuple(mended(t, p.shape) for t, p in pairs)

    def solve(self, call: Call, callback: Any = None, record: Any = None) -> Result:
        """Solve; instances whose numbers are not finite get their own status. `callback` and `record` as in `Solver.solve`."""
        finite = np.isfinite(call.start).all(axis=1)
        host = [self.xp.numpy(t) for t in call.theta]
        for t, s, p in zip(host, call.shared, self.program.parameters, strict=True):
            good = np.isfinite(t)
            finite &= good.all() if s else good.reshape(call.count, math.prod(p.shape)).all(axis=1)
        if self.domains and call.count:
            shaped = [
                t if s else t.reshape(*call.batch, *p.shape) for t, s, p in zip(host, call.shared, self.program.parameters, strict=True)
            ]
            outside = self.domains.outside(shaped, finite.reshape(call.batch))
            finite &= ~np.broadcast_to(outside, call.batch).reshape(-1)
        if not finite.all() and self.on_error == "raise":
            raise NonFiniteInputError(
                "a parameter or a start holds NaN or an infinity" + (", or a radius is not positive" if self.domains else ""),
                where=_places(np.asarray(~finite), call.batch),
                mend="mend the values, or export with on_error='flag' to keep the other instances",
            )
        result = self.solver.solve(call.start, call.theta, call.shared, callback, record)
        if finite.all():
            return result
        status = np.where(finite, result.status, np.int8(Status.NONFINITE_INPUT))
        return Result(result.values, status, result.residual, result.gradient, result.cost, result.iterations, result.refinements)

    def info(self, result: Result, batch: tuple[int, ...]) -> LeastSquaresInfo:
        """Facts in the batch's shape."""
        return LeastSquaresInfo(
            result.status.reshape(batch),
            result.residual.reshape(batch),
            result.gradient.reshape(batch),
            result.cost.reshape(batch),
            result.iterations.reshape(batch),
            None if result.history is None else result.history.reshape(-1, *batch),
        )

    def refuse(self, result: Result, batch: tuple[int, ...]) -> None:
        """Raise where an instance did not converge and the layer is told to raise."""
        bad = np.asarray(result.status != Status.SOLVED)
        if self.on_error != "raise" or not bad.any():
            return
        kinds = sorted({int(s) for s in result.status[bad]})
        said = "; ".join(f"{int((result.status == k).sum())}: {Status(k).message}" for k in kinds)
        values = {n: result.values[:, a:b].reshape(*batch, *s) for n, (a, b, s) in zip(self.program.outputs, self.slices, strict=True)}
        value = (result.cost * self.program.scale + self.program.constant).reshape(batch)
        solution = LeastSquaresSolution(tuple(values.values()), MappingProxyType(values), value, self.info(result, batch))
        raise SolveError(
            f"{int(bad.sum())} of {len(bad)} instances did not converge ({said})",
            solution=cast(Any, solution),
            indices=tuple(tuple(int(k) for k in np.unravel_index(i, batch)) for i in np.flatnonzero(bad)),
            where=f"{_places(bad, batch)}, largest gradient {np.max(result.gradient[bad], initial=0.0):.3g}",
            mend="start nearer, allow more iterations (options=dict(max_iterations=...)), or export with on_error='flag'",
        )


def _places(bad: np.ndarray, batch: tuple[int, ...]) -> str:
    if not batch:
        return "the instance"
    places = [tuple(int(k) for k in np.unravel_index(i, batch)) for i in np.flatnonzero(bad)]
    return "batch index " + ", ".join(map(str, places[:8])) + (f", ... ({len(places)} in all)" if len(places) > 8 else "")


class HostLayer:
    """A layer of numpy arrays around one of whichever framework is installed, where the derivatives inside come from.

    Args:
        compiled: What has `to(framework)`.
        outputs: Names of the outputs.
    """

    def __init__(self, compiled: Any, outputs: Sequence[str]) -> None:
        self.compiled, self._outputs = compiled, tuple(outputs)
        names = [n for n in frameworks.FRAMEWORKS[1:] if importlib.util.find_spec(n)]
        if not names:
            raise MissingDependencyError(
                "nonlinear least squares needs the derivatives of a framework",
                mend="pip install 'layercompiler[torch]' (or jax, tensorflow)",
            )
        for name in names:
            try:
                self._layer, self._xp = compiled.to(name), arrays.get(name)
                getattr(self._layer, "prepared", None)
                return
            except BuildError:  # residuals written in another framework fail at the start values
                if name == names[-1]:
                    raise

    def __call__(self, *args: Any, init: Mapping[str, Any] | None = None, **named: Any) -> tuple[np.ndarray, ...]:
        """Solve for one array per parameter, (batch..., *shape), by position or name; a tuple of arrays, one per output."""
        outputs = self._layer(*self._given(args), init=init, **self._named(named))
        return tuple(self._xp.numpy(x) for x in outputs)

    def solve(self, *args: Any, init: Mapping[str, Any] | None = None, **named: Any) -> LeastSquaresSolution:
        """Solve, and tell what happened to each instance. `callback` as in torch."""
        callback = named.pop("callback", None)
        found = self._layer.solve(*self._given(args), init=init, callback=callback, **self._named(named))
        outputs = tuple(self._xp.numpy(x) for x in found.outputs)
        named_outputs = MappingProxyType(dict(zip(self._outputs, outputs, strict=True)))
        return LeastSquaresSolution(outputs, named_outputs, self._xp.numpy(found.value), found.info)

    def report(self) -> str:
        """What the compiler found, and how it is solved and differentiated."""
        return self._layer.report()

    def _given(self, values: Sequence[Any]) -> list[Any]:
        return [self._xp.new(real(f"number {i + 1}", v)) for i, v in enumerate(values)]

    def _named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._xp.new(real(name, v)) for name, v in values.items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}[numpy]({self.compiled.describe()})"


class LeastSquaresLayer(HostLayer):
    """A least-squares problem as a function of numpy arrays; residuals are array functions, or of a framework that is installed."""

    def __init__(self, compiled: CompiledLeastSquares) -> None:
        problem = compiled.problem
        super().__init__(compiled, compiled.variables or problem.outputs or tuple(problem.variables))

    @property
    def prepared(self) -> Prepared:
        """The program and its solver, in the framework inside."""
        return self._layer.prepared
