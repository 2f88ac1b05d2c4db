"""Least squares as a function of jax arrays: the whole solve is traced and compiled, its derivative is the derivative rule's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layercompiler.errors import DtypeError, OptionError, SolveError, UnsupportedTransformError
from layercompiler.jax.layer import _array
from layercompiler.plan.arguments import starts
from layercompiler.plan.least_squares import FIXED, CompiledLeastSquares, Prepared
from layercompiler.plan.minimizer import LeastSquaresSolution
from layercompiler.solvers.least_squares import Result, descent
from layercompiler.solvers.least_squares.descent import RUNNING, State
from layercompiler.solvers.least_squares.evaluation import stages
from layercompiler.solvers.least_squares.linear import PIVOT
from layercompiler.solvers.least_squares.traced import converging, follow, instances, run
from layercompiler.status import Status


class LeastSquaresLayer:
    """Parameters in, minimiser out; `jit`, `vmap`, `grad`, `jvp`, `hessian` work, alone and together.

    Args:
        compiled: A `CompiledLeastSquares`.

    Differentiability:
        As in torch, and to every order. The derivative of an instance whose Hessian is not positive definite is NaN, so that it cannot
        pass for one. An instance that did not converge raises (outside of transforms with the whole solution, inside by a callback), or
        is NaN where the layer flags.

        A given Jacobian is held against automatic derivatives at the solution; where it is wrong, the instance has failed.

    Raises:
        OptionError: The options ask for a linear solve of the host.

    Cost:
        Dense: n^3 per step and instance. The first call of each shape compiles. Needs `jax_enable_x64`.
    """

    def __init__(self, compiled: CompiledLeastSquares) -> None:
        self.compiled = compiled
        if compiled.options.linear not in ("auto", "dense"):
            raise OptionError(
                "jax solves dense systems in its own arrays",
                where=f"linear='{compiled.options.linear}'",
                expected="'auto' or 'dense'",
                mend="leave `linear` and `eliminate` out, or use torch, TensorFlow or numpy",
            )
        self._compiled: dict[Any, Any] = {}

    @property
    def prepared(self) -> Prepared:
        """The program and its solver."""
        return self.compiled.prepare("jax")

    def __call__(self, *args: Any, init: Mapping[str, Any] | None = None, **named: Any) -> tuple[jax.Array, ...]:
        """Solve: parameters (batch..., *shape) in order or by name, starts by variable; one array per output, (batch..., *shape)."""
        return self._run(args, named, init, self.compiled.on_error)[0]

    def solve(
        self, *args: Any, init: Mapping[str, Any] | None = None, callback: Callable[..., Any] | None = None, **named: Any
    ) -> LeastSquaresSolution:
        """Solve outside of transforms, and tell what happened to each instance.

        Args:
            *args: As for a call.
            init: As for a call.
            callback: As in torch; the loop is then one of numpy arrays, on the host.
            **named: As for a call.

        Raises:
            UnsupportedTransformError: An argument is being traced.
        """
        if callback is not None:
            return self._told(args, named, init, callback)
        outputs, found, batch = self._run(args, named, init, "flag")
        if self.prepared.xp.traced(*found):
            raise UnsupportedTransformError(
                "solve() has no per-instance information inside of a jax transform", mend="call the layer itself"
            )
        result = _result(found)
        p = self.prepared
        value = jnp.asarray(result.cost.reshape(batch) * p.program.scale + p.program.constant)
        return LeastSquaresSolution(
            outputs, MappingProxyType(dict(zip(p.program.outputs, outputs, strict=True))), value, p.info(result, batch)
        )

    def report(self) -> str:
        """The variables and residuals, and how they are solved and differentiated."""
        return self.prepared.report(self.compiled.choices())

    def __repr__(self) -> str:
        return f"layercompiler.jax.LeastSquaresLayer({self.compiled.describe()})"

    def __getstate__(self) -> dict[str, Any]:
        return {"compiled": self.compiled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["compiled"])

    def _read(self, args: Any, named: Any, init: Any) -> tuple[list[Any], Any, tuple[int, ...]]:
        """Parameters in float64, the dtype of the outputs, and the batch shape."""
        p = self.prepared
        if not jax.config.jax_enable_x64:
            raise DtypeError(
                "least squares in jax needs 64-bit numbers", mend="jax.config.update('jax_enable_x64', True) before the first array"
            )
        given = [_array(v, name) for v, name in zip(p.arguments.bind(args, named), p.names, strict=True)]
        init = starts(init, lambda value: value)
        kinds = [g.dtype for g in given if jnp.issubdtype(g.dtype, jnp.floating)]
        dtype = jnp.result_type(*kinds) if kinds else jnp.float64
        theta = [g.astype(jnp.float64) for g in given]
        for name, value in (init or {}).items():
            if p.xp.traced(value):
                fixed = any(v.name == name and v.fixed is not None and v.fixed.any() for v in p.program.variables)
                said = FIXED if fixed else ("a start cannot be transformed", "map over parameters only, or pass concrete numbers")
                raise UnsupportedTransformError(said[0], where=f"init['{name}']", mend=said[1])
        return theta, dtype, p.batch_shape([t.shape for t in theta], init)

    def _told(self, args: Any, named: Any, init: Any, callback: Callable[..., Any]) -> LeastSquaresSolution:
        """A solve on the host, which tells of its steps."""
        p = self.prepared
        theta, dtype, batch = self._read(args, named, init)
        if p.xp.traced(*theta):
            raise UnsupportedTransformError("a callback sees no numbers inside of a jax transform", where="callback")
        result = p.solve(p.regular(theta, p.start(batch, init), batch), callback)
        values = result.values if self.compiled.on_error == "raise" else np.where(result.status[:, None] == 0, result.values, np.nan)
        outputs = tuple(jnp.asarray(values[:, a:b].reshape(*batch, *shape), dtype) for a, b, shape in p.slices)
        value = jnp.asarray(result.cost.reshape(batch) * p.program.scale + p.program.constant)
        return LeastSquaresSolution(
            outputs, MappingProxyType(dict(zip(p.program.outputs, outputs, strict=True))), value, p.info(result, batch)
        )

    def _run(self, args: Any, named: Any, init: Any, on_error: str) -> tuple[tuple[jax.Array, ...], tuple[Any, ...], tuple[int, ...]]:
        p = self.prepared
        theta, dtype, batch = self._read(args, named, init)
        start = jnp.asarray(p.start(batch, init))
        aligned = p.aligned(theta, batch)
        if p.domains and not p.xp.traced(*aligned):
            p.domains.outside([np.asarray(t) for t in aligned])
        key = (batch, tuple(a.shape for a in aligned), on_error)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(lambda start, *theta: self._whole(start, theta, batch, on_error))
        values, *found = self._compiled[key](start, *aligned)
        if p.solver.given and not p.xp.traced(values, *found) and (np.asarray(found[1]) == Status.FAILED).any():
            call = p.regular([jnp.asarray(t) for t in aligned], np.zeros(0), batch)
            at = np.asarray(found[0])
            p.solver.check(
                at, np.asarray(instances(p.solver, call.theta, call.shared).evaluate(jnp.asarray(at)).gradient), call.theta, call.shared
            )
        if on_error == "raise" and not p.xp.traced(values, *found):
            p.refuse(_result(found), batch)
        elif on_error == "raise":
            values = _checked(values, found[1].reshape(*batch, 1))
        return tuple(values[..., a:b].reshape(*batch, *shape).astype(dtype) for a, b, shape in p.slices), tuple(found), batch

    def _whole(self, start: Any, theta: tuple[Any, ...], batch: tuple[int, ...], on_error: str) -> tuple[Any, ...]:
        p = self.prepared
        fixed = [jax.lax.stop_gradient(t) for t in theta]
        call = p.regular(fixed, np.zeros(0), batch)
        mode = p.options.backward
        if mode not in ("implicit", "truncated", "unrolled"):
            raise UnsupportedTransformError(
                f"backward='{mode}' is not there in jax", expected="'implicit', 'truncated' or 'unrolled'", got=mode
            )
        record: list[Any] = []
        found = run(p.solver, start, call.theta, call.shared, _recorder(record) if mode == "unrolled" else None)
        values, status, pivots = found[0], found[1], found[-1]
        if p.domains:
            status = jnp.where(p.domains.traced(p.xp, fixed, batch).reshape(-1), int(Status.NONFINITE_INPUT), status)
            found = (values, status, *found[2:])
        bad = status != int(Status.SOLVED)
        values = jax.lax.stop_gradient(values)
        if on_error == "flag":
            at, sources = p.sound(~bad.reshape(batch), values.reshape(*batch, -1), theta)
            if mode == "unrolled":
                record = [_sound(p, ~bad.reshape(batch), steps, theta) for steps in record]
            values, theta = at.reshape(values.shape), sources
        # a derivative that does not exist is NaN: only its derivative, not the value
        free = jax.lax.stop_gradient(jnp.where(pivots > PIVOT, 1.0, jnp.nan)).reshape(*batch, 1)
        if mode == "implicit":
            flat = p.attached(values.reshape(*batch, -1), theta, "flag")
        else:
            whole = p.regular(theta, np.zeros(0), batch)
            if mode == "truncated":
                fixed = p.regular([jax.lax.stop_gradient(t) for t in theta], np.zeros(0), batch)
                step = converging(p.solver, instances(p.solver, fixed.theta, fixed.shared), values)
                record = [jax.tree.map(lambda a: jnp.broadcast_to(a, (p.options.truncation, *a.shape)), step)]
            flat = _followed(p, record, whole, values).reshape(*batch, -1)
        held = jax.lax.stop_gradient(flat)
        flat = held + _poison(flat - held, free)
        if on_error == "flag":
            flat = jnp.where(bad.reshape(*batch, 1), jnp.nan, flat)
        return flat, *(jax.lax.stop_gradient(f) for f in found)


def _recorder(record: list[Any]) -> Callable[..., State]:
    """A loop of `traced.run` that records the steps of each stage, stacked."""

    def descend(bound: Any, state: State, solver: Any, target: float, limit: int) -> State:
        def advance(s: State) -> tuple[State, Any]:
            return descent.attempt(bound, s, solver.options, solver.method, target)

        def rest(s: State) -> tuple[State, Any]:
            return s, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(advance, s)[1])

        def body(s: State, _: None) -> tuple[State, Any]:
            return jax.lax.cond(jnp.any((s.status == RUNNING) & ~(s.measure <= target)), advance, rest, s)

        state = State(*(jnp.asarray(a) for a in state))
        state, steps = jax.lax.scan(body, state, None, length=limit)
        record.append(jax.lax.stop_gradient(steps))
        done = (state.status == RUNNING) & (state.measure <= target)
        return state._replace(status=jnp.where(done, jnp.zeros_like(state.status), state.status))

    return descend


def _sound(p: Prepared, good: Any, steps: Any, theta: Any) -> Any:
    """Recorded steps, those of bad instances copied from a good one."""

    def mended(a: Any) -> Any:
        rows = jnp.moveaxis(a, 0, 1).astype(jnp.float64).reshape(*good.shape, -1)
        rows = p.sound(good, rows, theta)[0]
        return jnp.moveaxis(rows.reshape(a.shape[1], a.shape[0], *a.shape[2:]), 0, 1).astype(a.dtype)

    return jax.tree.map(mended, steps)


def _followed(p: Prepared, record: list[Any], call: Any, ends: Any) -> Any:
    """The values (B, ambient) with the derivative of the recorded steps."""
    x = None
    for widen, steps in zip(stages(p.program)[-len(record) :], record, strict=True):
        bound = instances(p.solver, call.theta, call.shared, widen)

        def body(x: Any, step: Any, bound: Any = bound) -> tuple[Any, None]:
            def go(x: Any) -> Any:
                return follow(p.solver, bound, x, step)

            return jax.lax.cond(jnp.any(step.accept), go, lambda x: x, x), None

        if len(steps.accept):
            x, _ = jax.lax.scan(body, steps.values[0] if x is None else x, steps)
    return ends if x is None else ends + (x - jax.lax.stop_gradient(x))


def _checked(values: Any, status: Any) -> Any:
    """The values, with a callback that raises where an instance did not converge."""

    def check(codes: Any) -> np.ndarray:
        codes = np.asarray(codes)
        if codes.any():
            kinds = ", ".join(Status(int(k)).message for k in np.unique(codes[codes != 0]))
            raise SolveError(f"{int((codes != 0).sum())} of {codes.size} instances did not converge ({kinds})")
        return codes

    status = jax.lax.stop_gradient(status).astype(jnp.int32)  # 64 bits need not be enabled on the thread of a callback
    seen = jax.pure_callback(check, jax.ShapeDtypeStruct(status.shape, status.dtype), status, vmap_method="expand_dims")
    return jnp.where(seen == 0, values, jnp.nan)


@jax.custom_jvp
def _poison(x: Any, factor: Any) -> Any:
    """X, its derivative times a factor."""
    return x


@_poison.defjvp
def _poison_jvp(primals: Any, tangents: Any) -> Any:
    (x, factor), (t, _) = primals, tangents
    return x, t * factor


def _result(found: Any) -> Result:
    values, status, measure, cost, gradient, iterations, _ = (np.asarray(f) for f in found)
    return Result(values, status.astype(np.int8), measure, gradient, cost, iterations)
