"""The solution map and its two derivative orders as jax primitives; every transform of jax follows from the rules below.

With f the solution map of the parameters theta, and everything evaluated per instance of a batch:

    solve   theta                   -> f(theta), z     z is the primal-dual point and its mark, as integer bits without a tangent
    jvp     theta, z, h             -> J h             linear in h,       transpose: vjp
    vjp     theta, z, g             -> J'g             linear in g,       transpose: jvp
    second  theta, z, h1, h2        -> D^2 f [h1, h2]  linear in h1, h2,  transpose: hvp
    hvp     theta, z, g, h          -> D (J'g) [h]     linear in g, h,    transpose in g: second, in h: hvp (it is symmetric)

The derivative along theta of jvp is second, of vjp is hvp; of second and hvp there is none, and asking for it raises while tracing.
Operands that are symbolically zero are left out: the static parameters say which are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from layercompiler.errors import UnsupportedTransformError
from layercompiler.jax.host import Dims, Host, lead
from layercompiler.jax.lowering import UNCACHED, eager, lower
from layercompiler.jax.shards import agree, result

Wanted = tuple[tuple[int, Dims], ...]


def solve(host: Host, thetas: Sequence[Any], start: Any = None) -> list[Any]:
    """Outputs of the compiled problem.

    Args:
        host: The compiled problem.
        thetas: One array per parameter, of one dtype and with equally many batch axes, each of length 1 or that of the batch.
        start: A warm start, (batch..., zsize), with as many batch axes. It changes the way to the solution and not the solution: no
            derivative passes through it.

    Returns:
        One array per output, with all batch axes.
    """
    return _bind(solve_p, *thetas, *([] if start is None else [start]), host=host, wrt=(), spread=0)[:-1]


class _Operands:
    """The operands of one bind by role, and its static parameters."""

    def __init__(
        self, values: Sequence[Any], host: Host, given: tuple[int, ...] = (), wrt: tuple[int, ...] = (), other: tuple[int, ...] = ()
    ):
        count, rest = len(host.shapes), iter(values)
        self.host = host
        self.thetas = [next(rest) for _ in range(count)]
        self.words = next(rest)
        self.g = {k: next(rest) for k in given}
        self.h = {i: next(rest) for i in wrt}
        self.h2 = {i: next(rest) for i in other}

    @property
    def point(self) -> tuple[Any, ...]:
        return (*self.thetas, self.words)


def _nonzero(values: dict[int, Any]) -> dict[int, Any]:
    return {k: v for k, v in values.items() if type(v) is not ad.Zero}


def _bind(primitive: Primitive, *values: Any, **params: Any) -> list[Any]:
    return primitive.bind(*agree(values), **params)


def _jvp(o: _Operands, h: dict[int, Any]) -> list[Any]:
    return _bind(jvp_p, *o.point, *h.values(), host=o.host, wrt=tuple(h))


def _vjp(o: _Operands, g: dict[int, Any], wanted: Wanted) -> list[Any]:
    return _bind(vjp_p, *o.point, *g.values(), host=o.host, given=tuple(g), wanted=wanted)


def _second(o: _Operands, h: dict[int, Any], h2: dict[int, Any]) -> list[Any]:
    return _bind(second_p, *o.point, *h.values(), *h2.values(), host=o.host, wrt=tuple(h), other=tuple(h2))


def _hvp(o: _Operands, g: dict[int, Any], h: dict[int, Any], wanted: Wanted) -> list[Any]:
    return _bind(hvp_p, *o.point, *g.values(), *h.values(), host=o.host, given=tuple(g), wrt=tuple(h), wanted=wanted)


def _wanted(host: Host, values: dict[int, Any]) -> Wanted:
    """Which parameters' cotangents have which batch axes, from the operands (or their avals) that they belong to."""
    return tuple((i, lead(v.aval if ad.is_undefined_primal(v) else v, host.shapes[i])) for i, v in values.items())


def _sum_to(value: Any, dims: Dims) -> Any:
    axes = tuple(a for a, k in enumerate(dims) if k == 1 and value.shape[a] != 1)
    return jnp.sum(value, axis=axes, keepdims=True) if axes else value


def _place(everything: Sequence[int], values: dict[int, Any]) -> list[Any]:
    return [values.get(i) for i in everything]


# -- shapes ------------------------------------------------------------------------------------------------------------------


def _batch(o: _Operands) -> Dims:
    dims = [o.words.shape[:-1]]
    dims += [lead(t, s) for t, s in zip(o.thetas, o.host.shapes, strict=True)]
    dims += [lead(g, o.host.results[k]) for k, g in o.g.items()]
    dims += [lead(h, o.host.shapes[i]) for each in (o.h, o.h2) for i, h in each.items()]
    return np.broadcast_shapes(*dims)


def _outputs_avals(o: _Operands) -> list[Any]:
    batch = _batch(o)
    return [result(o.thetas[0], (*batch, *shape), o.thetas[0].dtype) for shape in o.host.results]


def _parameters_avals(o: _Operands, wanted: Wanted) -> list[Any]:
    return [result(o.thetas[0], (*dims, *o.host.shapes[i]), o.thetas[0].dtype) for i, dims in wanted]


def _solve_avals(*operands: Any, host: Host, wrt: tuple[int, ...], spread: int) -> list[Any]:
    thetas = operands[: len(host.shapes)]
    starts = [z.shape[:-1] for z in operands[len(host.shapes) :]]  # a vmap over warm starts alone has results too
    batch = np.broadcast_shapes(*starts, *(lead(t, s) for t, s in zip(thetas, host.shapes, strict=True)))
    outputs = [result(thetas[0], (*batch, *shape), thetas[0].dtype) for shape in host.results]
    return [*outputs, result(thetas[0], (*batch, host.words), np.dtype(np.uint32))]


# -- forward mode ------------------------------------------------------------------------------------------------------------


def _add(first: list[Any] | None, other: list[Any] | None) -> list[Any] | None:
    if first is None or other is None:
        return other if first is None else first
    return [ad.add_tangents(a, b) for a, b in zip(first, other, strict=True)]


def _tangents(primals: Sequence[Any], parts: list[Any] | None) -> list[Any]:
    return [ad.Zero(jax.typeof(p).to_tangent_aval()) for p in primals] if parts is None else parts


def _solve_jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, host: Host, wrt: tuple[int, ...], spread: int
) -> tuple[list[Any], list[Any]]:
    count = len(host.shapes)
    h = _nonzero(dict(enumerate(tangents[:count])))
    results = _bind(solve_p, *primals, host=host, wrt=tuple(sorted({*wrt, *h})), spread=spread)
    o = _Operands((*primals[:count], results[-1]), host)
    dot = _tangents(results[:-1], _jvp(o, h) if h else None)
    return results, [*dot, ad.Zero(jax.typeof(results[-1]).to_tangent_aval())]


def _jvp_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, host: Host, wrt: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
    o, dot = _Operands(primals, host, wrt=wrt), _Operands(tangents, host, wrt=wrt)
    results = _jvp(o, o.h)
    h, theta = _nonzero(dot.h), _nonzero(dict(enumerate(dot.thetas)))
    return results, _tangents(results, _add(_jvp(o, h) if h else None, _second(o, o.h, theta) if theta else None))


def _vjp_jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, host: Host, given: tuple[int, ...], wanted: Wanted
) -> tuple[list[Any], list[Any]]:
    o, dot = _Operands(primals, host, given=given), _Operands(tangents, host, given=given)
    results = _vjp(o, o.g, wanted)
    g, theta = _nonzero(dot.g), _nonzero(dict(enumerate(dot.thetas)))
    return results, _tangents(results, _add(_vjp(o, g, wanted) if g else None, _hvp(o, o.g, theta, wanted) if theta else None))


def _second_jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, host: Host, wrt: tuple[int, ...], other: tuple[int, ...]
) -> tuple[list[Any], list[Any]]:
    o, dot = _Operands(primals, host, wrt=wrt, other=other), _Operands(tangents, host, wrt=wrt, other=other)
    _refuse_third(dot)
    results = _second(o, o.h, o.h2)
    h, h2 = _nonzero(dot.h), _nonzero(dot.h2)
    return results, _tangents(results, _add(_second(o, h, o.h2) if h else None, _second(o, o.h, h2) if h2 else None))


def _hvp_jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, host: Host, given: tuple[int, ...], wrt: tuple[int, ...], wanted: Wanted
) -> tuple[list[Any], list[Any]]:
    o, dot = _Operands(primals, host, given=given, wrt=wrt), _Operands(tangents, host, given=given, wrt=wrt)
    _refuse_third(dot)
    results = _hvp(o, o.g, o.h, wanted)
    g, h = _nonzero(dot.g), _nonzero(dot.h)
    return results, _tangents(results, _add(_hvp(o, g, o.h, wanted) if g else None, _hvp(o, o.g, h, wanted) if h else None))


def _refuse_third(dot: _Operands) -> None:
    if _nonzero(dict(enumerate(dot.thetas))):
        raise UnsupportedTransformError(
            "third derivatives of an optimization layer do not exist here",
            expected="at most two nested derivatives (grad, jvp, jacfwd, jacrev, hessian)",
            got="a third",
            mend="put jax.lax.stop_gradient around the layer's arguments where the outermost derivative need not see them",
        )


# -- reverse mode: transposes ------------------------------------------------------------------------------------------------


def _linear(values: dict[int, Any]) -> dict[int, Any]:
    return {k: v for k, v in values.items() if ad.is_undefined_primal(v)}


def _jvp_transpose(ct: Sequence[Any], *operands: Any, host: Host, wrt: tuple[int, ...]) -> list[Any]:
    o, g = _Operands(operands, host, wrt=wrt), _nonzero(dict(enumerate(ct)))
    h = _linear(o.h)
    wanted = _wanted(host, h)
    results = dict(zip(h, _vjp(o, g, wanted), strict=True)) if g else {}
    return [*[None] * len(o.point), *_place(wrt, results)]


def _vjp_transpose(ct: Sequence[Any], *operands: Any, host: Host, given: tuple[int, ...], wanted: Wanted) -> list[Any]:
    o, h = _Operands(operands, host, given=given), _nonzero(dict(zip((i for i, _ in wanted), ct, strict=True)))
    outputs = _jvp(o, h) if h else None
    return [*[None] * len(o.point), *(_output_cotangents(o, outputs, given))]


def _output_cotangents(o: _Operands, outputs: list[Any] | None, given: tuple[int, ...]) -> list[Any]:
    if outputs is None:
        return [None] * len(given)
    return [_sum_to(outputs[k], lead(g.aval, o.host.results[k])) if ad.is_undefined_primal(g) else None for k, g in o.g.items()]


def _second_transpose(ct: Sequence[Any], *operands: Any, host: Host, wrt: tuple[int, ...], other: tuple[int, ...]) -> list[Any]:
    o, g = _Operands(operands, host, wrt=wrt, other=other), _nonzero(dict(enumerate(ct)))
    h, h2 = _linear(o.h), _linear(o.h2)
    linear, fixed = (h, o.h2) if h else (h2, o.h)
    results = dict(zip(linear, _hvp(o, g, fixed, _wanted(host, linear)), strict=True)) if g else {}
    return [*[None] * len(o.point), *_place(wrt, results if h else {}), *_place(other, results if h2 else {})]


def _hvp_transpose(
    ct: Sequence[Any], *operands: Any, host: Host, given: tuple[int, ...], wrt: tuple[int, ...], wanted: Wanted
) -> list[Any]:
    o = _Operands(operands, host, given=given, wrt=wrt)
    w = _nonzero(dict(zip((i for i, _ in wanted), ct, strict=True)))
    empty = [None] * len(o.point)
    if h := _linear(o.h):
        results = dict(zip(h, _hvp(o, o.g, w, _wanted(host, h)), strict=True)) if w else {}
        return [*empty, *[None] * len(given), *_place(wrt, results)]
    return [*empty, *_output_cotangents(o, _second(o, o.h, w) if w else None, given), *[None] * len(wrt)]


# -- vmap --------------------------------------------------------------------------------------------------------------------


def _front(size: int, values: Sequence[Any], axes: Sequence[Any]) -> list[Any]:
    """The mapped axis in front, of length 1 where a value does not vary along it."""
    return [jnp.expand_dims(v, 0) if a is None else jnp.moveaxis(v, a, 0) for v, a in zip(values, axes, strict=True)]


def _mapped(values: Sequence[Any], axes: Sequence[Any]) -> tuple[int, list[Any]]:
    size = next(v.shape[a] for v, a in zip(values, axes, strict=True) if a is not None)
    return size, _front(size, values, axes)


def _batch_rule(primitive: Primitive) -> Callable[..., Any]:
    def rule(values: Sequence[Any], axes: Sequence[Any], **params: Any) -> tuple[list[Any], list[int]]:
        size, values = _mapped(values, axes)
        if "wanted" in params:  # each mapped instance has a cotangent of its own, of parameters they share too
            params["wanted"] = tuple((i, (size, *dims)) for i, dims in params["wanted"])
        if "spread" in params and params["wrt"]:
            params["spread"] += 1
        results = _bind(primitive, *values, **params)
        return results, [0] * len(results)

    return rule


# -- running -----------------------------------------------------------------------------------------------------------------


def _run_solve(*values: Any, host: Host, wrt: tuple[int, ...], spread: int) -> tuple[np.ndarray, ...]:
    count = len(host.shapes)
    return host.solve(values[:count], values[count] if len(values) > count else None, wrt=wrt, spread=spread)


def _run_jvp(*values: Any, host: Host, wrt: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    o = _Operands(values, host, wrt=wrt)
    return host.jvp(o.thetas, o.words, o.h)


def _run_vjp(*values: Any, host: Host, given: tuple[int, ...], wanted: Wanted) -> tuple[np.ndarray, ...]:
    o = _Operands(values, host, given=given)
    return host.vjp(o.thetas, o.words, o.g, dict(wanted))


def _run_second(*values: Any, host: Host, wrt: tuple[int, ...], other: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    o = _Operands(values, host, wrt=wrt, other=other)
    return host.second(o.thetas, o.words, o.h, o.h2)


def _run_hvp(*values: Any, host: Host, given: tuple[int, ...], wrt: tuple[int, ...], wanted: Wanted) -> tuple[np.ndarray, ...]:
    o = _Operands(values, host, given=given, wrt=wrt)
    return host.hvp(o.thetas, o.words, o.g, o.h, dict(wanted))


def _direct_solve(*avals: Any, host: Host, wrt: tuple[int, ...], spread: int) -> Any:
    return host.direct and host.direct.solve([a.shape for a in avals], bool(wrt))


def _direct_vjp(*avals: Any, host: Host, given: tuple[int, ...], wanted: Wanted) -> Any:
    o = _Operands(avals, host, given=given)
    return host.direct and host.direct.pull([t.shape for t in o.thetas], o.words.shape, {k: g.shape for k, g in o.g.items()}, dict(wanted))


def _primitive(name: str, run: Any, avals: Any, jvp: Any, transpose: Any = None, direct: Any = None) -> Primitive:
    primitive = Primitive(f"layercompiler_{name}")
    primitive.multiple_results = True
    primitive.def_impl(eager(run))
    primitive.def_abstract_eval(avals)
    ad.primitive_jvps[primitive] = jvp
    if transpose is not None:
        ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = _batch_rule(primitive)
    mlir.register_lowering(primitive, lower(run, direct), **UNCACHED)
    return primitive


solve_p = _primitive("solve", _run_solve, _solve_avals, _solve_jvp, direct=_direct_solve)
jvp_p = _primitive("jvp", _run_jvp, lambda *v, host, wrt: _outputs_avals(_Operands(v, host, wrt=wrt)), _jvp_jvp, _jvp_transpose)
vjp_p = _primitive(
    "vjp",
    _run_vjp,
    lambda *v, host, given, wanted: _parameters_avals(_Operands(v, host, given=given), wanted),
    _vjp_jvp,
    _vjp_transpose,
    _direct_vjp,
)
second_p = _primitive(
    "second",
    _run_second,
    lambda *v, host, wrt, other: _outputs_avals(_Operands(v, host, wrt=wrt, other=other)),
    _second_jvp,
    _second_transpose,
)
hvp_p = _primitive(
    "hvp",
    _run_hvp,
    lambda *v, host, given, wrt, wanted: _parameters_avals(_Operands(v, host, given=given, wrt=wrt), wanted),
    _hvp_jvp,
    _hvp_transpose,
)
