"""Implicit functions in torch: one autograd.Function for every mode, and functions whose captured tensors become arguments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import FunctionType, MethodType
from typing import Any

import torch
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from layercompiler.arrays.torch_linear import Product, Push, pulled

Tensors = tuple[Any, ...]


def implicit(xp: Any, rule: Any, known: Tensors, args: Tensors) -> torch.Tensor:
    """See `Arrays.implicit`."""
    recording = torch.is_grad_enabled()
    if not any(active(a, recording) for a in (*known, *args)):
        with torch.no_grad():
            return rule.value(xp, known, args)
    function = _Implicit if getattr(rule, "tape", None) is None else _Taped
    return function.apply(xp, rule, len(known), *known, *args)  # type: ignore[no-any-return]


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


class _Taped(torch.autograd.Function):
    """As `_Implicit` where the residual's evaluation is on tape, and so no transformation of torch.func around: first derivatives by it.

    In the older form of `forward`, which costs half of the newer one.
    """

    @staticmethod
    def forward(ctx: Any, xp: Any, rule: Any, count: int, *tensors: Any) -> Any:
        ctx.xp, ctx.rule, ctx.count = xp, rule, count
        y = rule.value(xp, tensors[:count], tensors[count:]).clone()
        ctx.save_for_backward(y, *tensors[count:])
        return y

    @staticmethod
    def backward(ctx: Any, cotangent: Any) -> Any:
        if torch.is_grad_enabled() or _functorch.is_functorch_wrapped_tensor(cotangent):
            return _Implicit.backward(ctx, cotangent)
        y, *args = ctx.saved_tensors  # also says if one was changed in place since
        first = 3 + ctx.count
        wanted = [i for i, w in enumerate(ctx.needs_input_grad[first:]) if w]
        grads: list[Any] = [None] * (first + len(args))
        if wanted:
            u = ctx.rule.pulled(ctx.xp, y, tuple(args), cotangent)
            for i, grad in zip(wanted, ctx.rule.tape.pull(-u, wanted), strict=True):
                grads[first + i] = grad
        return tuple(grads)


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
    """Notes tensors that a function uses beyond its arguments; if the run is taped, puts leaves that require a gradient in their place."""

    def __init__(self, args: Tensors, recording: bool, taped: bool) -> None:
        super().__init__()
        self.recording, self.taped = recording, taped
        self.level = _level()
        self.known: dict[int, Any] = {id(a): a for a in args}  # kept, so that no id is used twice
        self.found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.taped and _level():
            raise _TransformationError
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                self.meet(value)
            elif isinstance(value, (tuple, list, dict)):
                for leaf in tree_flatten(value)[0]:
                    if isinstance(leaf, torch.Tensor):
                        self.meet(leaf)
        if self.found and self.taped:
            args, kwargs = tree_map(self.placed, (args, kwargs))
        result = function(*args, **kwargs)
        for leaf in (result,) if isinstance(result, torch.Tensor) else tree_flatten(result)[0]:
            if isinstance(leaf, torch.Tensor):
                self.known[id(leaf)] = leaf
        return result

    def meet(self, tensor: torch.Tensor) -> None:
        key = id(tensor)
        if key in self.known or key in self.found:
            return
        if not tensor.is_floating_point() or _functorch.maybe_get_level(tensor) > self.level or not active(tensor, self.recording):
            self.known[key] = tensor  # what a transformation inside of the function wraps is no capture either
            return
        self.found[key] = tensor, tensor.detach().requires_grad_() if self.taped else tensor

    def placed(self, value: Any) -> Any:
        found = self.found.get(id(value))
        return value if found is None else found[1]


class _TransformationError(Exception):
    """A taped function uses torch.func itself: what comes out of that cannot be told from captured tensors, and no leaf is made within."""


def _level() -> int:
    """The level of the innermost torch.func transformation that is running; 0 outside of all."""
    return _functorch.maybe_current_level() or 0


class _Replace(TorchFunctionMode):
    """Runs a function with some tensors replaced by others."""

    def __init__(self, replaced: dict[int, Any]) -> None:
        super().__init__()
        self.replaced = replaced

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda v: self.replaced.get(id(v), v), (args, kwargs or {}))
        return function(*args, **kwargs)


class Tape:
    """One evaluation of a residual, kept as autograd's graph: first derivatives at (y, *args) without evaluating it again.

    The graph holds what one evaluation needs, whatever the number of iterations that led there.

    Attributes:
        vecmat: u -> the derivative by y, transposed, times u.
        matvec: v -> the derivative by y times v.
    """

    def __init__(self, y: torch.Tensor, args: Tensors, value: torch.Tensor) -> None:
        self.y, self.args, self.value = y, args, value
        self.vecmat, self.matvec = Product(value, y), Push(value, y)

    def pull(self, u: torch.Tensor, at: list[int]) -> tuple[torch.Tensor | None, ...]:
        """Cotangents of the arguments at some positions."""
        if not self.value.requires_grad:
            return (None,) * len(at)
        return pulled(self.value, tuple(self.args[i] for i in at), u)


def _alone(value: torch.Tensor, leaves: Tensors, began: int) -> bool:
    """Whether a value that was computed since node number `began` depends on nothing but leaves that is differentiated."""
    ended = torch.autograd._get_sequence_nr()
    node = value.grad_fn
    if node is None:
        return not value.requires_grad or any(value is leaf for leaf in leaves)
    seen, left = {node}, [node]
    while left:
        node = left.pop()
        number = node._sequence_nr()
        if not began <= number < ended:  # older, or of another thread; or a leaf, whose number is beyond all
            tensor = getattr(node, "variable", None)
            if not any(tensor is leaf for leaf in leaves):
                return False
            continue
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                left.append(before)
    return True


def _holds(f: Any, depth: int = 5) -> bool:
    """Whether a function looks as if it captured tensors that are differentiated: a guess, to evaluate it once."""
    if isinstance(f, torch.Tensor):
        return f.requires_grad
    if isinstance(f, torch.nn.Module):
        return True
    if depth == 0:
        return False
    if isinstance(f, FunctionType):
        try:
            return any(_holds(cell.cell_contents, depth - 1) for cell in f.__closure__ or ())
        except ValueError:  # an empty cell
            return False
    if isinstance(f, MethodType):
        return _holds(f.__self__, depth - 1)
    inside = f if isinstance(f, dict) else getattr(f, "__dict__", None) if callable(f) and not isinstance(f, type) else None
    return bool(inside) and any(_holds(v, depth - 1) for v in inside.values())


def captures(f: Callable[..., Any], args: Tensors) -> tuple[Callable[..., Any], Tensors, Any, Any]:
    """See `Arrays.captures`: module parameters and closed-over tensors become arguments.

    f is run once and watched: every operation that touches a captured tensor gets its stand-in instead. If derivatives may be asked for,
    that run is kept as a `Tape`. Watching costs more than many a residual, so where nothing looks captured f runs as it is, and the graph
    of its value tells if that was so.
    """
    recording = torch.is_grad_enabled()
    taped = recording and forward_ad._current_level < 0 and not _level() and not torch.compiler.is_compiling()
    leaves = tuple(a.detach() for a in args)
    if taped:
        leaves = tuple(a.requires_grad_() if a.is_floating_point() else a for a in leaves)
    if taped and not _holds(f):
        began = torch.autograd._get_sequence_nr()
        value = f(*leaves)
        if _alone(value, leaves, began):
            return f, (), value.detach(), Tape(leaves[0], leaves[1:], value)
    try:
        watch = _Watch(leaves, recording, taped)
        with watch, torch.set_grad_enabled(taped):
            value = f(*leaves)
        found, stand_ins = tuple(t for t, _ in watch.found.values()), tuple(s for _, s in watch.found.values())
    except _TransformationError:
        plain = tuple(a.detach() for a in leaves)
        watch = _Watch(plain, recording, False)
        with watch, torch.no_grad():
            f(*plain)
        found = tuple(t for t, _ in watch.found.values())
        stand_ins = tuple(t.detach().requires_grad_() for t in found)
        with _Replace({id(t): s for t, s in zip(found, stand_ins, strict=True)}) if found else nullcontext():
            value = f(*leaves)
    tape = Tape(leaves[0], (*leaves[1:], *stand_ins), value) if taped else None
    value = value.detach()
    if not found:
        return f, (), value, tape
    count = len(args)

    def explicit(*values: Any) -> Any:
        with _Replace({id(c): v for c, v in zip(found, values[count:], strict=True)}):
            return f(*values[:count])

    return explicit, found, value, tape
