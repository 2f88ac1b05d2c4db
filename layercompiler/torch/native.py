"""The array interior point as a differentiable torch function: tensors stay on their device, forward and backward.

Two functions that autograd and torch.func see through, each with both modes and vmap: the solve, and the linear solve with the matrix of
the residual map in which the derivatives of both are written. So derivatives of every order are right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layercompiler import arrays
from layercompiler.arrays.torch_implicit import active
from layercompiler.plan.failure import failure
from layercompiler.plan.native import Native
from layercompiler.status import Info, Status

_CACHE = 10_000_000  # numbers of a working set on the CPU: what stays in the last cache
_LEAST = 8  # instances that are worth the calls
_xp: Any = arrays.get("torch")


class _Solve(torch.autograd.Function):
    """(native, batch, finite, Q, p, A, b, G, h) to (x, y, v, status, residual, iterations, by_dual, *factors)."""

    @staticmethod
    def forward(native: Native, batch: tuple[int, ...], finite: Tensor, *data: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            x, y, v, status, *rest = _in_pieces(native, lambda *d: native.solve(_xp, d), [a.detach() for a in data])  # type: ignore[arg-type]
            status = torch.where(finite, status, int(Status.NONFINITE_INPUT)).to(torch.int8)
            if native.on_error == "raise" and bool((status != 0).any()):
                codes = status.numpy(force=True)
                raise failure(codes, batch if math.prod(batch) == len(codes) else codes.shape, None)
            return x, y, v, status, *rest

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.native = inputs[0]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[3:])
        kept = (*inputs[3:], *output[:4], *output[6:])
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        *held, status, by_dual = ctx.saved_tensors[:11]
        data, point, factors = held[:6], held[6:9], ctx.saved_tensors[11:]
        g = [torch.zeros_like(a) if g is None else g for g, a in zip(gradients, point, strict=False)]
        t = _linear(ctx.native, True, data[0], data[2], data[4], point[2], *g, status, by_dual, *factors)
        return None, None, None, *ctx.native.pull_right_side(_xp, point, t, tuple(data))

    @staticmethod
    def jvp(ctx: Any, _: Any, __: Any, ___: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *held, status, by_dual = ctx.saved_tensors[:11]
        data, point, factors = held[:6], held[6:9], ctx.saved_tensors[11:]
        right = ctx.native.right_side(_xp, point, tangents)
        u = _Linear.apply(ctx.native, False, data[0], data[2], data[4], point[2], *right, status, by_dual, *factors)
        return *u, *(None,) * (4 + len(factors))  # type: ignore[misc]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], native: Native, batch: tuple[int, ...], *tensors: Tensor) -> tuple[Any, Any]:  # type: ignore[override]
        flat, count = _merge(tensors, in_dims[2:], info.batch_size)
        return _split(_Solve.apply(native, (info.batch_size, *batch), *flat), info.batch_size, count)


class _Eager(torch.autograd.Function):
    """`_Solve` where no transformation of torch.func is around, in the older form of `forward`, which costs half of the newer one."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _Solve.forward(*inputs)
        _Solve.setup_context(ctx, inputs, output)
        return output

    backward = _Solve.backward  # type: ignore[assignment]
    jvp = _Solve.jvp


class _Linear(torch.autograd.Function):
    """(native, transposed, Q, A, G, v, r1, r2, r3, status, by_dual, *factors) to (u1, u2, u3)."""

    @staticmethod
    def forward(native: Native, transposed: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        def solve(Q: Tensor, A: Tensor, G: Tensor, v: Tensor, r1: Tensor, r2: Tensor, r3: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
            return native.system(_xp, Q, A, G, v, (r1, r2, r3), kept, transposed)

        with torch.no_grad():
            return _in_pieces(native, solve, [t.detach() for t in tensors])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.native, ctx.transposed = inputs[:2]
        kept = (*inputs[2:6], *output, *inputs[9:])
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        Q, A, G, v, u1, u2, u3, *kept = ctx.saved_tensors
        u, t = (u1, u2, u3), _Linear.apply(ctx.native, not ctx.transposed, Q, A, G, v, *g, *kept)
        left, right = (u, t) if ctx.transposed else (t, u)
        pulled = ctx.native.pull_matrix(_xp, G, v, left, right, (Q, A, G))
        return None, None, *(-p for p in pulled), *t, *(None,) * len(kept)

    @staticmethod
    def jvp(ctx: Any, _: Any, __: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        Q, A, G, v, u1, u2, u3, *kept = ctx.saved_tensors
        along = ctx.native.matrix_along(_xp, G, v, (u1, u2, u3), tangents[:4], ctx.transposed)
        right = [-a if r is None else r - a for a, r in zip(along, tangents[4:7], strict=True)]
        return _Linear.apply(ctx.native, ctx.transposed, Q, A, G, v, *right, *kept)  # type: ignore[return-value]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], native: Native, transposed: bool, *tensors: Tensor) -> tuple[Any, Any]:  # type: ignore[override]
        flat, count = _merge(tensors, in_dims[2:], info.batch_size)
        return _split(_Linear.apply(native, transposed, *flat), info.batch_size, count)


def _linear(native: Native, transposed: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
    """`_Linear`, on plain numbers where nobody asks for its derivative."""
    recording = torch.is_grad_enabled()
    if any(active(t, recording) for t in tensors):
        return _Linear.apply(native, transposed, *tensors)  # type: ignore[return-value]
    return _Linear.forward(native, transposed, *tensors)


def _merge(tensors: Sequence[Tensor], dims: Sequence[int | None], size: int) -> tuple[list[Tensor], int]:
    """Tensors (count or 1, ...) with a mapped dimension as (size count, ...), or (1, ...) where all share them; and the count."""
    fronts = [t if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
    count = max(t.shape[0] if d is None else t.shape[1] for t, d in zip(fronts, dims, strict=True))
    out = []
    for t, d in zip(fronts, dims, strict=True):
        if d is None and t.shape[0] == 1:
            out.append(t)
            continue
        wide = t.unsqueeze(0) if d is None else t
        out.append(wide.expand(size, count, *wide.shape[2:]).reshape(size * count, *wide.shape[2:]))
    return out, count


def _split(tensors: Any, size: int, count: int) -> tuple[Any, Any]:
    whole = [t.shape[0] == size * count for t in tensors]
    out = tuple(t.reshape((size, count, *t.shape[1:])) if w else t for t, w in zip(tensors, whole, strict=True))
    return out, tuple(0 if w else None for w in whole)


def _in_pieces(native: Native, function: Any, data: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A function of (B or 1, ...) tensors; on the CPU by pieces of the batch that stay in the cache."""
    batch = max([a.shape[0] for a in data])
    n, k, m = data[0].shape[-1], native.equalities, native.cone.m
    size = max(_LEAST, _CACHE // (n * (2 * n + k + 2 * m) + 3 * m**2 + 1))
    if not data[0].is_cpu or batch <= size + size // 2:
        return tuple(function(*data))
    size = -(-batch // -(-batch // size))  # pieces of one size but for the last
    whole: list[Tensor] = []
    for i in range(0, batch, size):
        part = function(*[a if a.shape[0] == 1 else a[i : i + size] for a in data])
        whole = whole or [a if a.shape[0] == 1 else _room(a, batch) for a in part]  # the first piece has several instances
        for k, a in enumerate(part):
            if a is not whole[k] and whole[k].shape[0] != 1:
                whole[k] = _placed(whole[k], a, i)
    return tuple(whole)


def _placed(whole: Tensor, part: Tensor, at: int) -> Tensor:
    """A tensor with a piece put in; a factor of the active rows is larger in some pieces, and the identity where others have none."""
    if whole.ndim < 3 or whole.shape[2] == part.shape[2]:
        whole[at : at + len(part)] = part
        return whole
    old, new = whole.shape[2], part.shape[2]
    if new > old:
        wider = _identity(whole, new)
        wider[:at, :old, :old] = whole[:at]
        whole = wider
    else:
        whole[at : at + len(part)] = _identity(part, old)
    whole[at : at + len(part), :new, :new] = part
    return whole


def _identity(like: Tensor, size: int) -> Tensor:
    """(count, size, size), laid out as a factor is."""
    return torch.eye(size, dtype=like.dtype, device=like.device).repeat(len(like), 1, 1).mT


def _room(a: Tensor, batch: int) -> Tensor:
    """An empty tensor for the whole batch, laid out as one piece is."""
    if a.ndim < 3 or a.is_contiguous():
        return a.new_empty((batch, *a.shape[1:]))
    return a.new_empty((batch, a.shape[2], a.shape[1])).mT


def run(native: Native, theta: Sequence[Tensor], batch: tuple[int, ...], told: bool = False) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and what `solve` tells of each instance.

    Args:
        native: The problem.
        theta: One float64 tensor per parameter, (batch..., *shape), on any one device.
        batch: The broadcast batch shape.
        told: Whether the optimal value is asked for.

    Raises:
        SolveError: An instance failed, and the problem is to raise.
    """
    count = math.prod(batch)
    if count == 0:
        link = sum((t.sum() for t in theta), torch.zeros((), dtype=torch.float64, device=theta[0].device)) * 0.0  # zero gradients, not none
        none = torch.zeros(batch, dtype=torch.float64, device=theta[0].device)
        outputs = [torch.zeros((*batch, *o.shape), dtype=torch.float64, device=theta[0].device) + link for o in native.program.outputs]
        return outputs, {"value": none, "status": none.to(torch.int8), "residual": none, "iterations": none.to(torch.int32)}
    rows = []
    for t, p in zip(theta, native.program.parameters, strict=True):
        lead = t.shape[: t.ndim - len(p.shape)]
        shared = count > 0 and math.prod(lead) == 1
        rows.append(t.reshape(1, p.size) if shared else t.expand(*batch, *p.shape).reshape(count, p.size))
    like = rows[0] if rows else torch.zeros(1, 1, dtype=torch.float64)
    finite = torch.ones(1, dtype=torch.bool, device=like.device)
    if _xp.traced(*rows) or not math.isfinite(
        sum(r.detach().sum() for r in rows)
    ):  # a pass over all numbers, and one on the way back, that is seldom needed
        for r in rows:
            finite = finite & torch.isfinite(r).all(1)
        rows = [torch.where(finite[: len(r), None], r, 0.0) for r in rows]  # so that no NaN meets a zero on the way back
    channels = [rows[c.parameter] for c in native.program.channels]
    data, found = native.bind(_xp, channels, like)
    data = (data[0], data[1].expand(count, -1), *data[2:])
    function = _Solve if torch._C._are_functorch_transforms_active() else _Eager
    x, y, v, status, residual, iterations, *_ = function.apply(native, batch, finite, *data)  # type: ignore[misc]
    outputs = native.recover(_xp, data, found, x, y, v, status == 0, told)
    outputs = [o.reshape((*batch, *o.shape[1:])) for o in outputs]
    facts = {k: f.reshape(batch) for k, f in (("status", status), ("residual", residual), ("iterations", iterations))}
    if not told:
        return outputs, facts
    return outputs[:-1], {"value": outputs[-1].detach(), "x": x.detach(), "v": torch.cat([y, v], 1).detach(), **facts}


def info(compiled: Any, theta: Sequence[Tensor], found: dict[str, Tensor], seconds: float) -> Info:
    """Per-instance facts as numpy arrays; the flags are judged on the host."""
    status, residual, iterations = (found[k].numpy(force=True) for k in ("status", "residual", "iterations"))
    degenerate, unique = np.zeros(status.shape, bool), np.ones(status.shape, bool)
    if status.size:
        x, v = (found[k].numpy(force=True) for k in ("x", "v"))
        degenerate, unique = compiled.judge([t.numpy(force=True) for t in theta], x, v, status == Status.SOLVED)
    name = np.full(status.shape, "interior_point", dtype=object)
    return Info(status, residual, iterations.astype(int), np.zeros(status.shape, int), degenerate, unique, name, seconds)
