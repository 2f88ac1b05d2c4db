"""Least squares as a function of jax arrays: the whole solve is traced and compiled, its derivative is the derivative rule's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layercompiler.errors import DtypeError, SolveError, UnsupportedTransformError
from layercompiler.jax.layer import _array
from layercompiler.plan.arguments import starts
from layercompiler.plan.least_squares import CompiledLeastSquares, LeastSquaresSolution, Prepared
from layercompiler.solvers.least_squares import Result
from layercompiler.solvers.least_squares.linear import PIVOT
from layercompiler.solvers.least_squares.traced import run, unrolled
from layercompiler.status import Status


class LeastSquaresLayer:
    """Parameters in, minimiser out; `jit`, `vmap`, `grad`, `jvp`, `hessian` work, alone and together.

    Args:
        compiled: A `CompiledLeastSquares`.

    Differentiability:
        As in torch, and to every order. The derivative of an instance whose Hessian is not positive definite is NaN, so that it cannot
        pass for one. An instance that did not converge raises (outside of transforms with the whole solution, inside by a callback), or
        is NaN where the layer flags.

    Cost:
        Dense: n^3 per step and instance. The first call of each shape compiles. Needs `jax_enable_x64`.
    """

    def __init__(self, compiled: CompiledLeastSquares) -> None:
        self.compiled = compiled
        self._compiled: dict[Any, Any] = {}

    @property
    def prepared(self) -> Prepared:
        """The program and its solver."""
        return self.compiled.prepare("jax")

    def __call__(self, *args: Any, init: Mapping[str, Any] | None = None, **named: Any) -> tuple[jax.Array, ...]:
        """Solve: parameters (batch..., *shape) in order or by name, starts by variable; one array per output, (batch..., *shape)."""
        return self._run(args, named, init, self.compiled.on_error)[0]

    def solve(self, *args: Any, init: Mapping[str, Any] | None = None, **named: Any) -> LeastSquaresSolution:
        """Solve outside of transforms, and tell what happened to each instance.

        Raises:
            UnsupportedTransformError: An argument is being traced.
        """
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

    def _run(self, args: Any, named: Any, init: Any, on_error: str) -> tuple[tuple[jax.Array, ...], tuple[Any, ...], tuple[int, ...]]:
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
        if p.xp.traced(*(init or {}).values()):
            raise UnsupportedTransformError("a start cannot be transformed", where="init", mend="map over parameters only")
        batch = p.batch_shape([t.shape for t in theta], init)
        start = jnp.asarray(p.start(batch, init))
        aligned = p.aligned(theta, batch)
        if p.domains and not p.xp.traced(*aligned):
            p.domains.outside([np.asarray(t) for t in aligned])
        key = (batch, tuple(a.shape for a in aligned), on_error)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(lambda start, *theta: self._whole(start, theta, batch, on_error))
        values, *found = self._compiled[key](start, *aligned)
        if on_error == "raise" and not p.xp.traced(values, *found):
            p.refuse(_result(found), batch)
        elif on_error == "raise":
            values = _checked(values, found[1].reshape(*batch, 1))
        return tuple(values[..., a:b].reshape(*batch, *shape).astype(dtype) for a, b, shape in p.slices), tuple(found), batch

    def _whole(self, start: Any, theta: tuple[Any, ...], batch: tuple[int, ...], on_error: str) -> tuple[Any, ...]:
        p = self.prepared
        fixed = [jax.lax.stop_gradient(t) for t in theta]
        call = p.regular(fixed, np.zeros(0), batch)
        values, status, *rest = run(p.solver, start, call.theta, call.shared)
        if p.domains:
            status = jnp.where(p.domains.traced(p.xp, fixed, batch).reshape(-1), int(Status.NONFINITE_INPUT), status)
        found, pivots = (values, status, *rest), rest[-1]
        bad = status != int(Status.SOLVED)
        mode = p.options.backward
        if on_error == "flag":
            at, theta = p.sound(~bad.reshape(batch), jax.lax.stop_gradient(values).reshape(*batch, -1), theta)
            values = at.reshape(values.shape)
        if mode == "implicit":
            # a derivative that does not exist is NaN: only its derivative, not the value
            free = jax.lax.stop_gradient(jnp.where(pivots > PIVOT, 1.0, jnp.nan)).reshape(*batch, 1)
            flat = p.attached(jax.lax.stop_gradient(values).reshape(*batch, -1), theta, "flag")
            held = jax.lax.stop_gradient(flat)
            flat = held + _poison(flat - held, free)
        elif mode in ("truncated", "unrolled"):
            whole = p.regular(theta, np.zeros(0), batch)
            count = p.options.max_iterations if mode == "unrolled" else p.options.truncation
            flat = unrolled(p.solver, start if mode == "unrolled" else values, whole.theta, whole.shared, count).reshape(*batch, -1)
        else:
            raise UnsupportedTransformError(
                f"backward='{mode}' is not there in jax", expected="'implicit', 'truncated' or 'unrolled'", got=mode
            )
        if on_error == "flag":
            flat = jnp.where(bad.reshape(*batch, 1), jnp.nan, flat)
        return flat, *(jax.lax.stop_gradient(f) for f in found)


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
