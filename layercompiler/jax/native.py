"""The array interior point as a pure jax function: `jit` compiles the solve itself, on any device.

One `custom_jvp` function with a linear solve that jax can transpose: derivatives of every order and mode follow. On the CPU a batch is
cut into pieces that stay in the cache (`lax.map`), and numpy is called for the rare instance that needs the primal form, which would
triple the time to compile; on a device it is solved as a whole, without a call to the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import float0

from layercompiler import arrays
from layercompiler.jax.rescue import on_host
from layercompiler.plan.failure import failure
from layercompiler.plan.native import Native
from layercompiler.solvers.interior_point.program import times, times_transposed
from layercompiler.status import Info, Status

_CACHE = 160_000  # numbers of a working set on the CPU
_xp: Any = arrays.get("jax")


class Function:
    """A compiled problem as a pure function of jax arrays.

    Args:
        native: The problem.
    """

    def __init__(self, native: Native) -> None:
        self.native = replace(native, on_host=on_host) if jax.default_backend() == "cpu" else native
        self._solve = jax.custom_jvp(self._forward)
        self._solve.defjvp(self._derivative)
        self._plain = jax.jit(lambda rows, batch: self._outputs(rows, batch, False), static_argnums=1)
        self._checked = jax.jit(lambda rows, batch: self._outputs(rows, batch, True), static_argnums=1)

    def __call__(self, values: Sequence[jax.Array], batch: tuple[int, ...]) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        """Outputs (batch..., *shape), and status, residual, iterations, value and point (x, v) of every instance.

        Args:
            values: One float64 array per parameter, (batch..., *shape).
            batch: Their broadcast batch shape.

        Raises:
            SolveError: An instance failed, and the problem is to raise; within `jit` jax raises its own error, with the same text.
        """
        count = math.prod(batch)
        if count == 0:
            none = jnp.zeros(batch)
            facts = {"status": none.astype(jnp.int8), "residual": none, "iterations": none.astype(jnp.int32), "value": none}
            return [jnp.zeros((*batch, *o.shape)) for o in self.native.program.outputs], facts
        rows = []
        for v, p in zip(values, self.native.program.parameters, strict=True):
            lead = v.shape[: v.ndim - len(p.shape)]
            shared = count > 0 and math.prod(lead) == 1
            rows.append(v.reshape(1, p.size) if shared else jnp.broadcast_to(v, (*batch, *p.shape)).reshape(count, p.size))
        raises = self.native.on_error == "raise"
        traced = _xp.traced(*rows)
        outputs, found = (self._checked if raises and traced else self._plain)(rows, batch)
        if raises and not traced and (np.asarray(found["status"]) != 0).any():
            raise failure(np.asarray(found["status"]), batch, None)
        return outputs, found

    def _outputs(self, rows: list[jax.Array], batch: tuple[int, ...], check: bool) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        native, count = self.native, math.prod(batch)
        finite = jnp.ones(1, bool)
        for r in rows:
            finite = finite & jnp.all(jnp.isfinite(r), axis=1)
        rows = [jnp.where(finite[: len(r), None], r, 0.0) for r in rows]  # so that no NaN meets a zero on the way back
        data, found = native.bind(_xp, [rows[c.parameter] for c in native.program.channels], rows[0] if rows else jnp.zeros((1, 1)))
        data = (data[0], jnp.broadcast_to(data[1], (count, data[1].shape[1])), *data[2:])
        x, y, v, status, residual, iterations, *_ = self._solve(jnp.broadcast_to(finite, (count,)), *data)
        if check:
            status = _stop_where_failed(status)
        *outputs, value = native.recover(_xp, data, found, x, y, v, status == 0)
        facts = {"status": status, "residual": residual, "iterations": iterations, "value": value}
        point = {"x": x, "v": jnp.concatenate([y, v], axis=1)}
        return [o.reshape((*batch, *o.shape[1:])) for o in outputs], {**{k: f.reshape(batch) for k, f in facts.items()}, **point}

    # The solve and its derivative --------------------------------------------------------------------------------------------

    def _forward(self, finite: Any, *data: Any) -> tuple[Any, ...]:
        x, y, v, status, *rest = self._in_pieces(lambda *d: self.native.solve(_xp, d), data)  # type: ignore[arg-type]
        return x, y, v, jnp.where(finite, status, int(Status.NONFINITE_INPUT)).astype(jnp.int8), *rest

    def _derivative(self, primals: Any, tangents: Any) -> tuple[Any, Any]:
        found = self._solve(*primals)
        x, y, v, status, _, _, by_dual, *factors = found
        Q, _, A, _, G, _ = primals[1:]
        right = self.native.right_side(_xp, (x, y, v), tangents[1:])
        u = self._linear(Q, A, G, v, right, (status, by_dual, *factors))
        zero = [jnp.zeros_like(a) if jnp.issubdtype(a.dtype, jnp.floating) else np.zeros(a.shape, float0) for a in found[3:]]
        return found, (*u, *zero)

    def _linear(self, Q: Any, A: Any, G: Any, v: Any, right: Any, kept: Any) -> Any:
        """u with M u = right."""
        cone = self.native.cone
        sizes = [r.shape[1] for r in right]
        ends = np.cumsum(sizes)

        # One vector: parts that no tangent or cotangent reaches (constant constraints, no equalities) could not be differentiated again.
        # Nothing empty is cut from it or put into it: XLA then loses what it needs to call LAPACK.
        def join(parts: Sequence[Any]) -> Any:
            count = max(p.shape[0] for p in parts)
            return jnp.concatenate([jnp.broadcast_to(p, (count, p.shape[1])) for p in parts if p.shape[1]], axis=1)

        def split(u: Any) -> list[Any]:
            return [u[:, end - k : end] if k else jnp.zeros((len(u), 0), u.dtype) for k, end in zip(sizes, ends, strict=True)]

        # What has a tangent must give the product one, says jax: factors are none of its business, and orthants bend the same at every v.
        kept, v = jax.lax.stop_gradient(kept), v if v.shape[1] else jax.lax.stop_gradient(v)
        tie = 0.0 * jnp.where(jnp.isfinite(v), v, 0.0)

        def product(u: Any) -> Any:
            u1, u2, u3 = split(u)
            bent = cone.apply(_xp, cone.derivative(_xp, v), u3) + tie * u3
            top = 0.5 * (times(_xp, Q, u1) + times_transposed(_xp, Q, u1)) + times_transposed(_xp, A, u2) + times_transposed(_xp, G, bent)
            return join((top, times(_xp, A, u1), times(_xp, G, u1) + bent - u3))

        def solve(transposed: bool) -> Callable[..., Any]:
            def run(_: Any, r: Any) -> Any:
                data = (Q, A, G, v, *split(r), *kept)
                return join(self._in_pieces(lambda *d: self.native.system(_xp, d[0], d[1], d[2], d[3], d[4:7], d[7:], transposed), data))

            return run

        return split(jax.lax.custom_linear_solve(product, join(right), solve(False), solve(True)))

    def _in_pieces(self, function: Callable[..., Any], data: Sequence[Any]) -> Any:
        """A function of (B or 1, ...) arrays; on the CPU by pieces of the batch that stay in the cache."""
        batch = max(a.shape[0] for a in data)
        native, n = self.native, data[0].shape[-1]
        rows = native.cone.m
        each = 2 * n * (n + native.equalities + rows) + 3 * rows**2 + 1
        size = min(max(1, _CACHE // each), batch)
        if batch <= size or jax.default_backend() != "cpu":
            return function(*data)
        count = -(-batch // size)
        moving = [i for i, a in enumerate(data) if a.shape[0] == batch]
        padded = [jnp.concatenate([data[i], jnp.repeat(data[i][-1:], count * size - batch, axis=0)]) for i in moving]
        pieces = tuple(a.reshape((count, size, *a.shape[1:])) for a in padded)

        def one(piece: Any) -> Any:
            full = list(data)
            for i, a in zip(moving, piece, strict=True):
                full[i] = a
            return function(*full)

        found = jax.lax.map(one, pieces)
        shapes = [s.shape[0] for s in jax.eval_shape(function, *data)]
        whole = [a.reshape((count * size, *a.shape[2:]))[:batch] if s == batch else a[0] for a, s in zip(found, shapes, strict=True)]
        return tuple(whole)


def _stop_where_failed(status: Any) -> Any:
    def check(codes: np.ndarray) -> np.ndarray:
        codes = np.asarray(codes)
        if (codes != 0).any():
            raise failure(codes, codes.shape, None)
        return codes

    return jax.pure_callback(check, jax.ShapeDtypeStruct(status.shape, status.dtype), status, vmap_method="expand_dims")


def info(compiled: Any, values: Sequence[jax.Array], found: dict[str, Any], seconds: float) -> Info:
    """Per-instance facts as numpy arrays; the flags are judged on the host."""
    status, residual, iterations = (np.asarray(found[k]) for k in ("status", "residual", "iterations"))
    degenerate, unique = np.zeros(status.shape, bool), np.ones(status.shape, bool)
    if status.size:
        x, v = np.asarray(found["x"]), np.asarray(found["v"])
        degenerate, unique = compiled.judge([np.asarray(a, np.float64) for a in values], x, v, status == Status.SOLVED)
    name = np.full(status.shape, "interior_point", dtype=object)
    return Info(status, residual, iterations.astype(int), np.zeros(status.shape, int), degenerate, unique, name, seconds)
