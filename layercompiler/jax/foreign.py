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
        jax.local_devices(backend="cpu")  # before it is up, jax keeps handlers for later, and one that is refused then brings it down
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


def emit(ctx: Any, values: Sequence[Any], run: Callable[..., Any], work: Any = None) -> Sequence[Any]:
    """The operations that call `run` with arrays that lie in XLA's memory, and write its results there; `work` is of float64."""
    takes, gives = list(ctx.avals_in), list(ctx.avals_out)
    inner = ctx
    if work is not None and any(_narrow(a.dtype) for a in (*takes, *gives)):
        takes, gives = [_widened(a) for a in takes], [_widened(a) for a in gives]
        inner = ctx.replace(avals_in=takes, avals_out=gives)
        values = [_convert(v, a, np.float64) if _narrow(k.dtype) else v for v, a, k in zip(values, takes, ctx.avals_in, strict=True)]
    taken, given = [_Lying(a) for a in takes], [_Lying(a) for a in gives]

    def python(arguments: Any, results: Any) -> None:
        found = run(*(k.read(arguments[i]) for i, k in enumerate(taken)))
        for i, (k, value) in enumerate(zip(given, found, strict=True)):
            k.write(results[i], value)

    call = foreign.Call(python, work)
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


class _Lying:
    """Where an array of this type lies, read and written by its address."""

    def __init__(self, aval: Any) -> None:
        self.shape, self.dtype = tuple(aval.shape), np.dtype(aval.dtype)
        self.size = math.prod(self.shape) * self.dtype.itemsize

    def read(self, address: int | None) -> np.ndarray:
        return np.ndarray(self.shape, self.dtype, _memory(address, self.size, _READ)) if self.size else np.empty(self.shape, self.dtype)

    def write(self, address: int | None, value: Any) -> None:
        if np.shape(value) != self.shape:
            raise ValueError(f"a result has shape {np.shape(value)}, not {self.shape}")
        if self.size:
            np.ndarray(self.shape, self.dtype, _memory(address, self.size, _WRITE))[...] = value


_READ, _WRITE = 0x100, 0x200
_memory: Any = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)
