"""Implicit functions in torch: one autograd.Function for every mode, and functions whose captured tensors become arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

Tensors = tuple[Any, ...]


def implicit(xp: Any, rule: Any, known: Tensors, args: Tensors) -> torch.Tensor:
    """See `Arrays.implicit`."""
    recording = torch.is_grad_enabled()
    if not any(active(a, recording) for a in (*known, *args)):
        with torch.no_grad():
            return rule.value(xp, known, args)
    return _Implicit.apply(xp, rule, len(known), *known, *args)  # type: ignore[no-any-return]


def active(tensor: torch.Tensor, recording: bool) -> bool:
    """Whether a derivative of this tensor may be asked for, or it is mapped."""
    return (
        _functorch.is_functorch_wrapped_tensor(tensor)
        or (tensor.requires_grad and recording)
        or (forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None)
    )


class _Implicit(torch.autograd.Function):
    """y with residual(y, *args) = 0. Backward and jvp use the output itself, so that they may be differentiated again."""

    @staticmethod
    def forward(xp: Any, rule: Any, count: int, *tensors: Any) -> Any:
        return rule.value(xp, tensors[:count], tensors[count:]).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.xp, ctx.rule, ctx.count, *tensors = inputs
        ctx.save_for_backward(output, *tensors[ctx.count :])
        ctx.save_for_forward(output, *tensors[ctx.count :])

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        y, *args = map(_functorch.unwrap_if_dead, ctx.saved_tensors)  # a pullback is called after the level it was made on
        cotangent = _functorch.unwrap_if_dead(cotangent)
        wanted = ctx.needs_input_grad[3 + ctx.count :]
        at = [i for i, (a, w) in enumerate(zip(args, wanted, strict=True)) if w and a.is_floating_point()]
        grads: list[Any] = [None] * (3 + ctx.count + len(args))
        if not at:
            return tuple(grads)
        u = ctx.rule.solve(ctx.xp, y, tuple(args), cotangent, True)
        _, pull, *_ = torch.func.vjp(lambda *some: ctx.rule.residual(y, *_placed(args, at, some)), *(args[i] for i in at))
        for i, grad in zip(at, pull(-u), strict=True):
            grads[3 + ctx.count + i] = grad
        return tuple(grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        moving = tangents[3 + ctx.count :]
        with forward_ad._set_fwd_grad_enabled(True):  # torch turns it off here, and forward over forward would be silently wrong
            y, *args = (forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors)  # tangents of outer levels stay
            at = [i for i, t in enumerate(moving) if t is not None and args[i].is_floating_point()]
            change = _along(lambda *some: ctx.rule.residual(y, *_placed(args, at, some)), [args[i] for i in at], [moving[i] for i in at])
            return ctx.rule.solve(ctx.xp, y, tuple(args), -change, False)

    @staticmethod
    def vmap(info: Any, axes: Any, xp: Any, rule: Any, count: int, *tensors: Any) -> Any:
        axes = axes[3:]
        must = {*range(count), *(count + i for i in rule.own)}
        moved = [
            t.movedim(axis, 0) if axis is not None else t.expand(info.batch_size, *t.shape) if i in must else t
            for i, (t, axis) in enumerate(zip(tensors, axes, strict=True))
        ]
        lanes = tuple(None if axis is None and i not in must else 0 for i, axis in enumerate(axes))
        return _Implicit.apply(xp, rule.mapped(xp, lanes[count:]), count, *moved), 0


def _along(f: Callable[..., Any], args: list[Any], tangents: list[Any]) -> Any:
    """The derivative of f along tangents."""
    if torch._C._are_functorch_transforms_active():
        # clones: torch makes no dual of an expanded tensor, which vmap leaves
        return torch.func.jvp(f, tuple(a.clone() for a in args), tuple(tangents))[1]
    # Dual levels do not nest: the pullback of the pullback instead.
    recording = torch.is_grad_enabled() and any(a.requires_grad for a in (*args, *tangents))
    with torch.enable_grad():
        args = [a if a.requires_grad else a.detach().requires_grad_() for a in args]
        value = f(*args)
        c = torch.zeros_like(value, requires_grad=True)
        pulled = torch.autograd.grad(value, args, c, create_graph=True, allow_unused=True)
        some = [(p, t) for p, t in zip(pulled, tangents, strict=True) if p is not None and p.requires_grad]
        if not some:
            return torch.zeros_like(value)
        return torch.autograd.grad([p for p, _ in some], c, [t for _, t in some], create_graph=recording)[0]


def _placed(args: Any, at: list[int], some: Any) -> list[Any]:
    full = list(args)
    for i, value in zip(at, some, strict=True):
        full[i] = value
    return full


class _Opaque(torch.autograd.Function):
    @staticmethod
    def forward(f: Any, mapped: Any, *args: Any) -> Any:
        with torch.enable_grad():  # a solver may differentiate
            return tuple(v.detach().clone() for v in f(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return None

    @staticmethod
    def vmap(info: Any, axes: Any, f: Any, mapped: Any, *args: Any) -> Any:
        moved = [a if axis is None else a.movedim(axis, 0) for a, axis in zip(args, axes[2:], strict=True)]
        results = _Opaque.apply(mapped(tuple(None if axis is None else 0 for axis in axes[2:]), info.batch_size, f), mapped, *moved)
        return results, (0,) * len(results)


def opaque(f: Callable[..., Any], mapped: Callable[..., Any], args: Tensors) -> Tensors:
    """See `Arrays.opaque`."""
    args = tuple(a.detach() for a in args)
    if any(_functorch.is_functorch_wrapped_tensor(a) for a in args):
        return tuple(v.detach() for v in _Opaque.apply(f, mapped, *args))
    return tuple(v.detach() for v in f(*args))


class _Watch(TorchFunctionMode):
    """Notes tensors that a function uses beyond its arguments."""

    def __init__(self, args: Tensors) -> None:
        super().__init__()
        self.recording = torch.is_grad_enabled()
        self.level = _functorch.maybe_current_level() or 0
        self.made: dict[int, Any] = {id(a): a for a in args}
        self.found: dict[int, torch.Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_flatten((args, kwargs))[0]:
            if isinstance(leaf, torch.Tensor) and id(leaf) not in self.made and id(leaf) not in self.found:
                inner = _functorch.maybe_get_level(leaf) > self.level  # a transform inside of the function wrapped it
                if leaf.is_floating_point() and not inner and active(leaf, self.recording):
                    self.found[id(leaf)] = leaf
        result = function(*args, **(kwargs or {}))
        for leaf in tree_flatten(result)[0]:
            if isinstance(leaf, torch.Tensor):
                self.made[id(leaf)] = leaf
        return result


class _Replace(TorchFunctionMode):
    """Runs a function with some tensors replaced by others."""

    def __init__(self, replaced: dict[int, Any]) -> None:
        super().__init__()
        self.replaced = replaced

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda v: self.replaced.get(id(v), v), (args, kwargs or {}))
        return function(*args, **kwargs)


def captures(f: Callable[..., Any], args: Tensors) -> tuple[Callable[..., Any], Tensors, Any]:
    """See `Arrays.captures`: module parameters and closed-over tensors become arguments.

    f is run once and watched; then every operation that touches a captured tensor gets its stand-in instead.
    """
    args = tuple(a.detach() for a in args)
    watch = _Watch(args)
    with torch.no_grad(), watch:
        value = f(*args)
    found = tuple(watch.found.values())
    if not found:
        return f, (), value.detach()
    count = len(args)

    def explicit(*values: Any) -> Any:
        with _Replace({id(c): v for c, v in zip(found, values[count:], strict=True)}):
            return f(*values[:count])

    return explicit, found, value.detach()
