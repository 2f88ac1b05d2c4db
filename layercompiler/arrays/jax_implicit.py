"""Implicit functions in jax: a JVP rule whose linear solve can be transposed, and functions whose captured values become arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from layercompiler.errors import UnsupportedTransformError

Values = tuple[Any, ...]


def implicit(xp: Any, rule: Any, known: Values, args: Values) -> Any:
    """See `Arrays.implicit`."""
    count = len(known)

    @jax.custom_jvp
    def result(*values: Any) -> Any:
        return rule.value(xp, values[:count], values[count:])

    @result.defjvp
    def _rule(primals: Any, tangents: Any) -> Any:
        y, args = result(*primals), primals[count:]
        at = [i for i, a in enumerate(args) if jnp.issubdtype(jnp.result_type(a), jnp.floating)]

        def residual(*some: Any) -> Any:
            full = list(args)
            for i, value in zip(at, some, strict=True):
                full[i] = value
            return rule.residual(y, *full)

        if not at:
            return y, jnp.zeros_like(y)
        _, change = jax.jvp(residual, tuple(args[i] for i in at), tuple(tangents[count + i] for i in at))
        return y, rule.solve(xp, y, args, -change, False)

    return result(*(jax.lax.stop_gradient(k) for k in known), *args)


def linear_solve(matvec: Callable[[Any], Any], b: Any, solve: Callable[..., Any]) -> Any:
    """x with matvec(x) = b, differentiable and transposable; `solve(matvec, vecmat, b, transposed)` computes on numbers."""
    shape = jax.ShapeDtypeStruct(jnp.shape(b), jnp.result_type(b))
    transposed = jax.linear_transpose(matvec, shape)

    def vecmat(u: Any) -> Any:
        return transposed(u)[0]

    return jax.lax.custom_linear_solve(
        matvec,
        b,
        lambda product, r: solve(product, vecmat, r, False),
        lambda product, r: solve(product, matvec, r, True),
    )


def refuse(change: Any, message: str, mend: str) -> Any:
    """A linear function of unknown value: NaN forwards, an error where its transpose is asked for."""
    return _REFUSED.bind(change, message=message, mend=mend)


def _refuse_transpose(cotangent: Any, change: Any, *, message: str, mend: str) -> list[Any]:
    if type(cotangent) is ad.Zero:
        return [ad.Zero(change.aval)]  # what is not used may be transposed all the same
    raise UnsupportedTransformError(message, mend=mend)


def _nan(x: Any, **_: Any) -> Any:
    return jnp.full_like(x, jnp.nan)


_REFUSED = Primitive("layercompiler_refused")
_REFUSED.def_impl(_nan)
_REFUSED.def_abstract_eval(lambda x, **_: x)
ad.deflinear2(_REFUSED, _refuse_transpose)
mlir.register_lowering(_REFUSED, mlir.lower_fun(_nan, multiple_results=False))
batching.primitive_batchers[_REFUSED] = lambda values, axes, **named: (_REFUSED.bind(*values, **named), axes[0])


def host(f: Callable[..., Any], like: Any, args: Values) -> Any:
    """See `Arrays.host`."""
    args = tuple(jax.lax.stop_gradient(a) for a in args)
    shape = jax.ShapeDtypeStruct(like.shape, like.dtype)

    def call(*values: Any) -> np.ndarray:
        return np.asarray(f(*(np.asarray(v) for v in values)), like.dtype)

    return jax.pure_callback(call, shape, *args, vmap_method="sequential")


def captures(f: Callable[..., Any], args: Values) -> tuple[Callable[..., Any], Values, Any, None]:
    """See `Arrays.captures`."""
    args = tuple(jax.lax.stop_gradient(a) for a in args)
    closed = jax.make_jaxpr(f)(*args)
    consts = [jax.lax.stop_gradient(c) for c in closed.consts]
    value = jax.core.eval_jaxpr(closed.jaxpr, consts, *args)[0]
    if not any(isinstance(c, jax.core.Tracer) for c in closed.consts):
        return f, (), value, None
    moving = [i for i, c in enumerate(closed.consts) if isinstance(c, jax.core.Tracer)]
    count = len(args)

    def explicit(*values: Any) -> Any:
        consts = list(closed.consts)
        for i, value in zip(moving, values[count:], strict=True):
            consts[i] = value
        return jax.core.eval_jaxpr(closed.jaxpr, consts, *values[:count])[0]

    return explicit, tuple(closed.consts[i] for i in moving), value, None
