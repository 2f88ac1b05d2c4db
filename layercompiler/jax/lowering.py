"""How functions of numpy arrays run as jax primitives: outside of compiled code, and within it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.interpreters import mlir

from layercompiler.jax import foreign
from layercompiler.jax.shards import result


def eager(run: Callable[..., Any]) -> Callable[..., Any]:
    """Outside of jit the host function runs directly, so that its exceptions reach the caller as they are."""

    def impl(*values: Any, **params: Any) -> list[jax.Array]:
        results = run(*(np.asarray(v) for v in values), **params)
        home = next((v.sharding for v in values if isinstance(v, jax.Array) and v.committed and len(v.devices()) == 1), None)
        return [jax.device_put(r, home) for r in results]

    return impl


def _if_known(function: Callable[..., Any], **settings: Any) -> dict[str, Any]:
    """Those of the settings that this version of jax knows."""
    return {k: v for k, v in settings.items() if k in inspect.signature(function).parameters}


_TOKENLESS = _if_known(mlir.emit_python_callback, returns_token=False)
UNCACHED = _if_known(mlir.register_lowering, cacheable=False)


def lower(run: Callable[..., Any], direct: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The lowering rule that calls `run` on the host, on a thread of XLA's; `direct` may give the kernels' call that stands in for it.

    Where there is no foreign function to call, jax calls back. Then 64-bit results cross as 32-bit words: jax rounds what a callback
    returns to what the callback's thread may hold, and the context manager `jax.enable_x64(True)` holds for the thread that traced.
    """

    def rule(ctx: Any, *values: Any, **params: Any) -> Any:
        if foreign.serves(ctx):
            return foreign.emit(ctx, values, partial(run, **params), direct(*ctx.avals_in, **params) if direct else None)
        wide = [a.dtype == np.float64 for a in ctx.avals_out]
        kinds = [jax.ShapeDtypeStruct((*a.shape, 2), np.uint32) if w else a for a, w in zip(ctx.avals_out, wide, strict=True)]

        def host(*arrays: Any) -> list[np.ndarray]:
            results = run(*map(np.asarray, arrays), **params)
            return [words(r) if w else r for r, w in zip(results, wide, strict=True)]

        def read(*results: Any) -> list[Any]:
            return [jax.lax.bitcast_convert_type(r, np.float64) if w else r for r, w in zip(results, wide, strict=True)]

        if getattr(ctx.module_context.axis_context, "num_devices", None) != 1:
            return mlir.lower_fun(lambda *v: read(*jax.pure_callback(host, kinds, *v)), multiple_results=True)(ctx, *values)
        # Not `jax.pure_callback`: on the CPU this hands over numpy arrays without a second device_put (which may wait for the very thread
        # that runs the callback), and it logs nothing when the callback raises.
        avals = [result(a, kind.shape, kind.dtype) for a, kind in zip(ctx.avals_out, kinds, strict=True)]
        inner = ctx.replace(avals_out=avals)
        results, _, _ = mlir.emit_python_callback(inner, host, None, list(values), ctx.avals_in, avals, has_side_effect=False, **_TOKENLESS)
        return mlir.lower_fun(read, multiple_results=True)(ctx.replace(avals_in=avals), *results)

    return rule


def words(array: np.ndarray) -> np.ndarray:
    """64-bit numbers as pairs of 32-bit words, (..., 2)."""
    return np.ascontiguousarray(array).view(np.uint32).reshape(*array.shape, 2)
