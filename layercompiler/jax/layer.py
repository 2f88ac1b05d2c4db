"""A compiled problem as a function of jax arrays that every transform of jax accepts."""

from __future__ import annotations

import time
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from layercompiler.errors import DtypeError, UnsupportedTransformError
from layercompiler.jax import native
from layercompiler.jax.host import Host
from layercompiler.jax.primitives import solve as solve_batch
from layercompiler.plan.arguments import NUMBERS, REAL_PARTS
from layercompiler.status import Solution


class Layer:
    """A batched, differentiable optimization problem: parameters in, solutions out.

    On a GPU (with `jax_enable_x64`) dense problems of linear and second-order cones are solved there, as part of the compiled function; so
    they are on any device with solver="interior_point". All others are solved on the host.

    The leading axes of all arrays are batch axes and broadcast as in numpy. The results have the dtype of the arguments, while the host
    solves in float64 (also with `jax_enable_x64` off). The layer holds no state and is no pytree: close over it, as over any function.

    Args:
        compiled: A `CompiledProblem`.

    Example:
        >>> import cvxpy as cp, jax, layercompiler as lc
        >>> x, c = cp.Variable(2), cp.Parameter(2)
        >>> layer = lc.export(cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0]), "jax")
        >>> gradient = jax.jit(jax.grad(lambda c: layer(c)[0].sum()))
        >>> [round(float(g), 6) + 0.0 for g in gradient(jax.numpy.array([1.0, -1.0]))]
        [1.0, 0.0]

    Differentiability:
        `jit`, `vmap` (one host call for the whole batch), `grad`, `jvp`, `jacfwd`, `jacrev`, `hessian` in every order, `scan`,
        `checkpoint`, `shard_map` and `eval_shape` work, alone and together, to second order; a third derivative raises
        `UnsupportedTransformError`. Failed instances (with on_error="flag") are NaN, with zero derivatives. `jax.export` cannot store a
        layer: the solver runs on the host.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._host = Host(compiled)

    def __call__(self, *args: Any, warm_start: Any = None, options: Any = None, **named: Any) -> tuple[jax.Array, ...]:
        """Solve the problem at the given parameters.

        Args:
            *args: Parameters in the order of the compiled problem, each (batch..., *shape). Numbers, lists and numpy arrays are taken too.
            warm_start: The `Solution` of an earlier `solve`, or its `warm_start`, to start from.
            options: `Options`, or a dict of their fields, of this call instead of the layer's.
            **named: Parameters by name.

        Returns:
            One array per output, (batch..., *shape).

        Raises:
            ShapeError: The number, the names or the shapes of the arguments are wrong.
            DtypeError: An argument is not real.
            SolveError: An instance was not solved, and the problem was compiled with `on_error="raise"`. Inside `jax.jit` jax raises its
                own runtime error, which carries the text.
        """
        return run(self._with(options), args, named, warm_start)

    def solve(self, *args: Any, warm_start: Any = None, options: Any = None, **named: Any) -> Solution:
        """Solve outside of any transform, and tell what happened to each instance; the arguments are those of a call.

        Returns:
            The solution; its outputs and values are jax arrays in the dtype of a call.

        Raises:
            UnsupportedTransformError: An argument is being traced.
        """
        return solve(self._with(options), args, named, warm_start)

    def report(self) -> str:
        """What the compiler did, pass by pass."""
        return self.compiled.report()

    def __repr__(self) -> str:
        return f"{type(self).__module__.rpartition('.')[0]}.{type(self).__name__}({self.compiled.describe()})"

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_host"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _host=Host(state["compiled"]))

    def _with(self, options: Any) -> Host:
        return self._host if options is None else Host(self.compiled, type(self.compiled.options).of(options))


def run(host: Host, args: tuple[Any, ...], named: dict[str, Any], warm_start: Any) -> tuple[jax.Array, ...]:
    """Outputs of a problem, for the arguments of a call."""
    specs = host.problem.parameters
    values = host.problem.arguments(args, named)
    arrays = [_array(v, p.name) for v, p in zip(values, specs, strict=True)]
    dtype = _dtype(values, arrays)
    batch = host.problem.batch_shape([a.shape for a in arrays])
    if not arrays:
        return tuple(jnp.asarray(y, dtype) for y in host.problem.evaluate([], options=host.options).outputs)
    if _natively(host):
        outputs, _ = host.native([a.astype(jnp.float64) for a in arrays], batch)
        return tuple(y.astype(dtype) for y in outputs)
    aligned = [_align(a, len(batch) + len(p.shape), dtype) for a, p in zip(arrays, specs, strict=True)]
    return tuple(solve_batch(host, aligned, _start(warm_start, batch, host.problem.zsize, dtype)))


def solve(host: Host, args: tuple[Any, ...], named: dict[str, Any], warm_start: Any) -> Solution:
    """The solution of a problem, for the arguments of a call."""
    values = host.problem.arguments(args, named)
    if any(isinstance(v, jax.core.Tracer) for v in values):
        raise UnsupportedTransformError(
            "layer.solve reports on values, and these are being traced",
            expected="arrays",
            got="tracers of jit, vmap or a derivative",
            mend="call layer(...) inside the transformed function, and layer.solve(...) outside of it",
        )
    arrays = [_array(v, p.name) for v, p in zip(values, host.problem.parameters, strict=True)]
    dtype = _dtype(values, arrays)
    if _natively(host) and arrays:
        began, batch = time.perf_counter(), host.problem.batch_shape([a.shape for a in arrays])
        outputs, facts = host.native([a.astype(jnp.float64) for a in arrays], batch)
        seconds = time.perf_counter() - began
        told = native.info(host.problem, arrays, facts, seconds)
        outputs: Any = tuple(y.astype(dtype) for y in outputs)
        named_outputs: Any = dict(zip((o.name for o in host.problem.outputs), outputs, strict=True))
        return Solution(outputs, named_outputs, np.asarray(facts["value"]), told)
    found = host.problem.solve(*(np.asarray(a.astype(dtype)) for a in arrays), warm_start=warm_start, options=host.options)
    outputs = tuple(jnp.asarray(y, dtype) for y in found.outputs)
    return replace(found, outputs=outputs, values=MappingProxyType(dict(zip(found.values, outputs, strict=True))))


def _natively(host: Host) -> bool:
    """Whether the array interior point solves a call: on a GPU, and where it was asked for; it needs float64."""
    if host.native is None or not jax.config.jax_enable_x64:
        return False
    return host.asked or jax.default_backend() in ("gpu", "cuda", "rocm")


def _array(value: Any, name: str) -> jax.Array:
    try:
        array = value if isinstance(value, jax.Array) else jnp.asarray(value)
    except (TypeError, ValueError) as error:
        got = type(value).__name__
        raise DtypeError(
            f"parameter {name!r} is not an array", where=f"parameter {name!r}", expected="real numbers", got=got, mend=NUMBERS
        ) from error
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == bool):
        got = f"{'complex ' * jnp.issubdtype(array.dtype, jnp.complexfloating)}dtype {array.dtype}"
        mend = REAL_PARTS if got.startswith("complex") else NUMBERS
        raise DtypeError(f"parameter {name!r} is not real", where=f"parameter {name!r}", expected="a real dtype", got=got, mend=mend)
    return array


def _dtype(values: list[Any], arrays: list[jax.Array]) -> Any:
    """The widest floating dtype of the arguments; numbers and lists follow the arrays among them."""
    floating = [(v, a.dtype) for v, a in zip(values, arrays, strict=True) if jnp.issubdtype(a.dtype, jnp.floating)]
    deciding = [d for v, d in floating if hasattr(v, "dtype")] or [d for _, d in floating]
    return jnp.result_type(*deciding) if deciding else jnp.result_type(float)


def _align(array: jax.Array, rank: int, dtype: Any) -> jax.Array:
    """`array` with as many batch axes as the whole call, the new ones of length 1."""
    array = array if array.dtype == dtype else array.astype(dtype)
    return array if array.ndim == rank else array.reshape((1,) * (rank - array.ndim) + array.shape)


def _start(warm_start: Any, batch: tuple[int, ...], size: int, dtype: Any) -> jax.Array | None:
    """The primal-dual vector in a warm start; one that does not fit the call is no start."""
    if warm_start is None:
        return None
    z = jnp.asarray(getattr(warm_start, "warm_start", warm_start), dtype)
    fits = (
        z.shape[-1:] == (size,)
        and z.ndim <= len(batch) + 1
        and all(k in (1, n) for k, n in zip(z.shape[-2::-1], batch[::-1], strict=False))
    )
    return jax.lax.stop_gradient(_align(z, len(batch) + 1, dtype)) if fits else None
