"""A compiled problem as a function of jax arrays that every transform of jax accepts."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from layercompiler.errors import DtypeError, UnsupportedTransformError
from layercompiler.jax.host import Host
from layercompiler.jax.primitives import solve
from layercompiler.status import Solution


class Layer:
    """A batched, differentiable optimization problem: parameters in, solutions out.

    `layer(*arrays)` and `layer(name=array)` return one array per output. The leading axes of all arrays are batch axes and broadcast as
    in numpy; the results have the dtype of the arguments, while the host solves in float64 (also with `jax_enable_x64` off). The layer
    holds no state and is no pytree: close over it, as over any function.

    Args:
        compiled: A `CompiledProblem`.

    Differentiability:
        `jit`, `vmap` (one host call for the whole batch), `grad`, `jvp`, `jacfwd`, `jacrev`, `hessian` in every order, `scan`,
        `checkpoint` and `eval_shape` work, alone and together, to second order. A third derivative raises `UnsupportedTransformError`.
        `jax.export` cannot store a layer: the solver runs on the host.

    Raises:
        ShapeError: The number, the names or the shapes of the arguments are wrong.
        DtypeError: An argument is not real.
        SolveError: An instance was not solved and the problem was compiled with `on_error="raise"`. Inside `jax.jit` jax raises its own
            runtime error, which carries the text.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._host = Host(compiled)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, ...]:
        """The outputs, each of shape (batch..., *output shape)."""
        values = self._arrays(args, kwargs)
        batch = self.compiled.batch_shape([v.shape for v in values])
        if not values:
            return tuple(jnp.asarray(y, jnp.result_type(float)) for y in self.compiled.evaluate([]).outputs)
        dtype = jnp.result_type(*values)
        dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
        aligned = [_align(v, len(batch) + len(p.shape), dtype) for v, p in zip(values, self.compiled.parameters, strict=True)]
        return tuple(solve(self._host, aligned))

    def solve(self, *args: Any, warm_start: Any = None, options: Any = None, **kwargs: Any) -> Solution:
        """Solve outside of any transform; the `Solution` holds values, duals and the status of every instance.

        Args:
            *args: As in a call.
            warm_start: The `warm_start` of an earlier solution.
            options: Options of the solver for this call.
            **kwargs: As in a call.

        Returns:
            The solution; its outputs and values are numpy arrays in float64.

        Raises:
            UnsupportedTransformError: An argument is being traced.
        """
        values = self.compiled.arguments(args, kwargs)
        if any(isinstance(v, jax.core.Tracer) for v in values):
            raise UnsupportedTransformError(
                "layer.solve reports on values, and these are being traced",
                expected="arrays",
                got="tracers of jit, vmap or a derivative",
                mend="call layer(...) inside the transformed function, and layer.solve(...) outside of it",
            )
        return self.compiled.solve(*map(np.asarray, values), warm_start=warm_start, options=options)

    def __repr__(self) -> str:
        return f"layercompiler.jax.Layer({self.compiled!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.compiled,)

    def report(self) -> str:
        """What the compiler did, pass by pass."""
        return self.compiled.report()

    def _arrays(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[jax.Array]:
        values = self.compiled.arguments(args, kwargs)
        return [_array(v, p.name) for v, p in zip(values, self.compiled.parameters, strict=True)]


def _array(value: Any, name: str) -> jax.Array:
    try:
        array = value if isinstance(value, jax.Array) else jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise DtypeError(
            "an argument is not an array", where=f"parameter {name!r}", got=type(value).__name__, expected="real numbers"
        ) from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating) or not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise DtypeError("an argument is not real", where=f"parameter {name!r}", expected="a real dtype", got=f"dtype {array.dtype}")
    return array


def _align(array: jax.Array, rank: int, dtype: Any) -> jax.Array:
    """`array` with as many batch axes as the whole call, the new ones of length 1."""
    array = array if array.dtype == dtype else array.astype(dtype)
    return array if array.ndim == rank else array.reshape((1,) * (rank - array.ndim) + array.shape)
