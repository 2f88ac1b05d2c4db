"""Implicit functions in jax: a JVP rule whose linear solve can be transposed, and functions whose captured values become arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, Primitive
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


class _DoubleError(Exception):
    """An equation that is not known to have a form in single precision."""


def _singly(jaxpr: Any, consts: Any, *args: Any) -> list[Any]:
    """As `jax.core.eval_jaxpr`, in single precision."""

    def single(v: Any) -> Any:
        return v.astype(jnp.float32) if jnp.result_type(v) == jnp.float64 else v

    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), map(single, (*consts, *args)), strict=True))
    for equation in jaxpr.eqns:
        given = [single(np.asarray(v.val)) if isinstance(v, Literal) else values[v] for v in equation.invars]
        params = dict(equation.params)
        if "jaxpr" in params and equation.primitive.name in ("pjit", "jit"):
            found = _singly(params["jaxpr"].jaxpr, params["jaxpr"].consts, *given)
        elif any(isinstance(p, (jax.extend.core.ClosedJaxpr, jax.extend.core.Jaxpr)) for p in jax.tree_util.tree_leaves(params)):
            raise _DoubleError
        else:
            for name in ("preferred_element_type", "new_dtype", "dtype"):
                if params.get(name) == jnp.float64:
                    params[name] = np.dtype(np.float32)
            if "precision" in params:
                params["precision"] = (jax.lax.Precision.HIGHEST,) * 2  # a card would take even fewer digits
            found = equation.primitive.bind(*given, **params)
            found = found if equation.primitive.multiple_results else [found]
        values.update(zip(equation.outvars, map(single, found), strict=True))
    return [single(np.asarray(v.val)) if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]


def rows(product: Callable[[Any], Any], like: Any, single: bool = False) -> Any:
    """(n, m): a linear product of every row of the identity of order n.

    A matrix times the identity is that matrix: no product is computed where the operand, scaled or not, is all that a matrix meets. And the
    identity is none of XLA's constants, which it would multiply with others, slowly, while it compiles.
    """
    n = int(np.prod(like.shape))
    shape = jax.ShapeDtypeStruct(jnp.shape(like), jnp.result_type(like))
    eye = jax.lax.optimization_barrier(jnp.eye(n, dtype=shape.dtype)).reshape(n, *shape.shape)
    if len(shape.shape) != 1:
        return None if single else jax.vmap(product)(eye)
    closed = jax.make_jaxpr(product)(shape)
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    scaled: dict[Any, Any] = {jaxpr.invars[0]: None}  # values that are the operand times a factor
    known: list[tuple[int, Any]] = []

    def constant(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else values.get(v)

    for at, equation in enumerate(jaxpr.eqns):
        name, inside = equation.primitive.name, equation.invars
        moving = [i for i, v in enumerate(inside) if not isinstance(v, Literal) and v in scaled]
        if len(moving) != 1 or len(equation.outvars) != 1:
            continue
        factor, others = scaled[inside[moving[0]]], [constant(v) for i, v in enumerate(inside) if i != moving[0]]
        if any(v is None for v in others):
            continue
        if name == "neg" or (name in ("mul", "div") and moving == [0]) or (name == "mul" and moving == [1]):
            if equation.outvars[0].aval.shape == shape.shape:
                ones = jnp.ones(shape.shape, shape.dtype) if factor is None else factor
                scaled[equation.outvars[0]] = -ones if name == "neg" else ones * others[0] if name == "mul" else ones / others[0]
        elif name == "dot_general":
            contracted, batched = equation.params["dimension_numbers"]
            matrix = others[0]
            if not batched[0] and len(contracted[moving[0]]) == 1 and jnp.ndim(matrix) == 2:
                result = matrix if contracted[1 - moving[0]][0] == 0 else matrix.T
                result = result if factor is None else result * factor[:, None]
                known.append((at, result.astype(equation.outvars[0].aval.dtype)))

    skipped = {at for at, _ in known}
    rest = jaxpr.replace(
        invars=[*jaxpr.invars, *(jaxpr.eqns[at].outvars[0] for at, _ in known)],
        eqns=[e for at, e in enumerate(jaxpr.eqns) if at not in skipped],
        debug_info=jaxpr.debug_info._replace(arg_names=None),
    )
    given = eye, *(f for _, f in known)
    if not single:
        return jax.vmap(lambda *given: jax.core.eval_jaxpr(rest, closed.consts, *given)[0])(*given)
    try:
        return jax.vmap(lambda *given: _singly(rest, closed.consts, *given)[0])(*given)
    except (_DoubleError, TypeError):
        return None


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
