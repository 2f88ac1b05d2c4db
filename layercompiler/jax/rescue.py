"""A numpy function inside of compiled code, for the instances that code made for the common case cannot solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from layercompiler.jax.lowering import UNCACHED, eager, lower


def on_host(function: Callable[..., np.ndarray], like: Any, *values: Any) -> Any:
    """The array of function(*values), of the shape of `like` and float64: to be mapped and compiled, not to be differentiated."""
    return rescue_p.bind(*values, function=function, shape=tuple(like.shape))[0]


@dataclass(frozen=True, eq=False)
class _Mapped:
    """The function over a leading dimension of some of its arguments."""

    function: Callable[..., np.ndarray]
    moving: tuple[bool, ...]

    def __call__(self, *values: np.ndarray) -> np.ndarray:
        size = next(len(v) for v, m in zip(values, self.moving, strict=True) if m)
        return np.stack([self.function(*(v[i] if m else v for v, m in zip(values, self.moving, strict=True))) for i in range(size)])


def _run(*values: np.ndarray, function: Callable[..., np.ndarray], shape: tuple[int, ...]) -> tuple[np.ndarray]:
    return (function(*values),)


def _batch(values: Sequence[Any], dims: Sequence[int | None], *, function: Any, shape: tuple[int, ...]) -> Any:
    moving = tuple(d is not None for d in dims)
    fronts = [v if d is None else jnp.moveaxis(v, d, 0) for v, d in zip(values, dims, strict=True)]
    size = next(v.shape[0] for v, m in zip(fronts, moving, strict=True) if m)
    return rescue_p.bind(*fronts, function=_Mapped(function, moving), shape=(size, *shape)), [0]


rescue_p = Primitive("layercompiler_rescue")
rescue_p.multiple_results = True
rescue_p.def_impl(eager(_run))
rescue_p.def_abstract_eval(lambda *_, function, shape: [jax.core.ShapedArray(shape, np.float64)])
batching.primitive_batchers[rescue_p] = _batch
mlir.register_lowering(rescue_p, lower(_run), **UNCACHED)
