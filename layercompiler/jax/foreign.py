"""Host functions as foreign functions of XLA: compiled code calls them without a copy, and the kernels without Python."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

from layercompiler import kernels
from layercompiler.kernels import foreign

_TARGET = "layercompiler_call"


@cache
def registered() -> bool:
    """Whether this jax takes our handler: the kernels are built, and XLA's interface is of a version that they know."""
    if not kernels.available():
        return False
    try:
        jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(foreign.handler()), platform="cpu")
    except Exception:  # whatever it is that does not fit: `lower` goes another way
        return False
    return True


def serves(ctx: Any) -> bool:
    """Whether a primitive is lowered for one CPU, where the handler can be called."""
    return (
        tuple(ctx.module_context.platforms) == ("cpu",)
        and getattr(ctx.module_context.axis_context, "num_devices", None) == 1
        and registered()
    )


def emit(ctx: Any, values: Sequence[Any], run: Callable[..., Any], dense: foreign.DenseCall | None = None) -> Sequence[Any]:
    """The operations that call `run` with arrays that lie in XLA's memory, and write its results there; dense QPs are solved in float64."""
    takes, gives = list(ctx.avals_in), list(ctx.avals_out)
    inner = ctx
    if dense is not None and any(_narrow(a.dtype) for a in (*takes, *gives)):
        takes, gives = [_widened(a) for a in takes], [_widened(a) for a in gives]
        inner = ctx.replace(avals_in=takes, avals_out=gives)
        values = [_convert(v, a, np.float64) if _narrow(k.dtype) else v for v, a, k in zip(values, takes, ctx.avals_in, strict=True)]
    kinds_in, kinds_out = [(a.shape, np.dtype(a.dtype)) for a in takes], [(a.shape, np.dtype(a.dtype)) for a in gives]

    def python(arguments: Any, results: Any) -> None:
        found = run(*(_view(arguments[i], *kind, False) for i, kind in enumerate(kinds_in)))
        for i, ((shape, dtype), value) in enumerate(zip(kinds_out, found, strict=True)):
            if np.shape(value) != shape:
                raise ValueError(f"result {i} has shape {np.shape(value)}, not {shape}")
            _view(results[i], shape, dtype, True)[...] = value

    call = foreign.Call(python, dense)
    # XLA holds callbacks as long as the program that it runs, which may outlive the object that Python has of it.
    ctx.module_context.add_host_callback(lambda *_: call)
    found = jax.ffi.ffi_lowering(_TARGET)(inner, *values, call=np.int64(call.number))
    if inner is not ctx:
        found = [_convert(v, a, a.dtype) if _narrow(a.dtype) else v for v, a in zip(found, ctx.avals_out, strict=True)]
    return found


def _narrow(dtype: Any) -> bool:
    return jax.numpy.issubdtype(dtype, jax.numpy.floating) and dtype != np.float64


def _widened(aval: Any) -> Any:
    return aval.update(dtype=np.dtype(np.float64)) if _narrow(aval.dtype) else aval


def _convert(value: Any, aval: Any, dtype: Any) -> Any:
    """With an operation of its own: functions of jax know no float64 where `jax_enable_x64` is off."""
    element = mlir.dtype_to_ir_type(np.dtype(dtype))
    return stablehlo.ConvertOp(ir.RankedTensorType.get(aval.shape, element), value).result


def _view(address: int | None, shape: tuple[int, ...], dtype: np.dtype, writable: bool) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return np.empty(shape, dtype)
    memory: Any = (ctypes.c_char * size).from_address(address or 0)
    array = np.ndarray(shape, dtype, buffer=memory)
    array.flags.writeable = writable
    return array
