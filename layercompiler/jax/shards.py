"""Inside `jax.shard_map`, types say along which mesh axes a value differs: operands of one call must agree, and results inherit it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.core import ShapedArray
from jax.sharding import PartitionSpec


def varying(aval: Any) -> frozenset[Any]:
    """The mesh axes of the enclosing `shard_map` along which a value of this type differs from shard to shard."""
    kind = getattr(aval, "mat", aval)  # jax 0.10 keeps it in `mat.varying`, earlier ones in `vma`
    return getattr(kind, "varying", None) or getattr(aval, "vma", None) or frozenset()


def agree(values: Sequence[Any]) -> Sequence[Any]:
    """The values, declared to vary along every axis along which one of them does; the transpose is a sum over the shards."""
    axes = [varying(jax.typeof(v)) for v in values]
    union = frozenset().union(*axes)
    if not union:
        return values
    return [_vary(v, tuple(sorted(union - a))) if union - a else v for v, a in zip(values, axes, strict=True)]


def _vary(value: Any, axes: tuple[Any, ...]) -> Any:
    return jax.lax.pcast(value, axes, to="varying") if hasattr(jax.lax, "pcast") else jax.lax.pvary(value, axes)


def result(like: Any, shape: tuple[int, ...], dtype: Any) -> ShapedArray:
    """The type of a result of a call on operands of type `like`."""
    if not varying(like):
        return ShapedArray(shape, dtype)
    return like.update(shape=shape, dtype=dtype, weak_type=False, sharding=like.sharding.update(spec=PartitionSpec(*[None] * len(shape))))
