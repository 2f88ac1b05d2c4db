"""Derivative rules: which of the five functions differentiates which, forward and backward.

With f the solution map theta -> outputs, J its derivative, <.,.> the sum over all entries:

    solve(theta) = f           backward(g) = vjp(g)                               forward(h) = jvp(h)
    vjp(theta, g) = J'g        backward(w): g <- jvp(w), theta <- hvp(g, w)       forward(h, g') = hvp(g, h) + vjp(g')
    jvp(theta, h) = Jh         backward(g): h <- vjp(g), theta <- hvp(g, h)       forward(k, h') = second(h, k) + jvp(h')
    hvp(theta, g, h)           backward(w): g <- second(h, w), h <- hvp(g, w)     forward(g', h') = hvp(g', h) + hvp(g, h')
    second(theta, h, k)        backward(g): h <- hvp(g, k), k <- hvp(g, h)        forward(h', k') = second(h', k) + second(h, k')

The last two have no derivative in theta: that would be of third order, and raises. z is a function of theta; theta's rows above are
total derivatives, so z itself is not differentiated.

These are the rules of the dispatcher's Autograd key (see operators.py): each runs at one level of autograd, its results at the next
lower one, so that nesting of forward and reverse mode and of vmap is the dispatcher's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from typing_extensions import override

from layercompiler.errors import UnsupportedTransformError
from layercompiler.torch.registry import find

Parts = Sequence[Tensor | None]


def _below(call: Any, *arguments: Any) -> list[Tensor]:
    """Call an operator at the levels of autograd below this one."""
    if not torch._C._are_functorch_transforms_active():
        with torch._C._AutoDispatchBelowAutograd():
            return call(*arguments)
    # Function.apply has switched both modes off for its own level; the levels below have their own say.
    with torch.enable_grad(), _set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
        return call(*arguments)


def _some(parts: Parts) -> bool:
    return any(p is not None for p in parts)


def _onto(gradients: Sequence[Tensor] | None, like: Parts) -> Parts:
    """Gradients in the shapes of `like`: the leading dimensions along which a primal was broadcast are summed."""
    if gradients is None:
        return [None] * len(like)
    return [None if p is None else g.sum_to_size(p.shape) if g.shape != p.shape else g for g, p in zip(gradients, like, strict=True)]


def _third_order() -> UnsupportedTransformError:
    return UnsupportedTransformError(
        "the third derivative of a layer's solution is not available",
        mend="differentiate at most twice, or detach() the layer's inputs in the term that is differentiated a third time",
    )


class _At(NamedTuple):
    """The point of a derivative: parameters, solution, linear arguments, and the problem's name."""

    theta: Sequence[Tensor]
    z: Tensor
    linear: list[Parts]
    name: str


class _Rule(torch.autograd.Function):
    """A function of flat arguments that calls its operator, `call`, below this level of autograd."""

    call: Any  # the dispatched operator; operators.py sets it

    @classmethod
    def record(cls, *arguments: Any) -> list[Tensor]:
        """Run the rule at this level of autograd and no other."""
        # Function.apply would hand it on to the functorch levels below; their turn comes when `forward` calls the operator.
        apply = super(torch.autograd.Function, cls).apply  # type: ignore[misc]
        if not torch._C._are_functorch_transforms_active():
            return list(apply(*arguments))
        with enable_single_level_autograd_function():
            return list(apply(*arguments))

    @staticmethod
    def save(ctx: Any, name: str, tensors: Parts) -> None:
        ctx.bound = find(name)  # keeps the problem as long as the graph lives
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)


class Solve(_Rule):
    """Arguments: name, dtypes (see host.solve), warm start, parameters."""

    @staticmethod
    @override
    def forward(ctx: Any, name: str, dtypes: str, warm: Tensor | None, *theta: Tensor) -> tuple[Tensor, ...]:
        *outputs, z = _below(Solve.call, theta, warm, name, dtypes)
        ctx.mark_non_differentiable(z)
        _Rule.save(ctx, name, (*theta, z))
        return *outputs, z

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Any) -> Any:
        *theta, z = ctx.saved_tensors
        g = gradients[:-1]
        return None, None, None, *_onto(Vjp.call(theta, z, g, ctx.bound.name) if _some(g) else None, theta)

    @staticmethod
    @override
    def jvp(ctx: Any, *tangents: Any) -> Any:
        *theta, z = ctx.saved_tensors
        return *Jvp.call(theta, z, tangents[3:], ctx.bound.name), None


class _Linear(_Rule):
    """Arguments: name, parameters, z, then the groups that it is linear in; `groups` has "g" for cotangents and "h" for tangents."""

    groups: str

    @classmethod
    def gradient(cls, at: _At, w: Parts) -> Sequence[Tensor]:
        """Transposed derivative in the parameters, with the groups fixed."""
        raise _third_order()

    @classmethod
    def along(cls, at: _At, h: Parts) -> Sequence[Tensor]:
        """Derivative in the parameters along h, with the groups fixed."""
        raise _third_order()

    @classmethod
    def transpose(cls, at: _At, i: int, w: Parts) -> Sequence[Tensor]:
        """Transpose of the map from group i."""
        raise NotImplementedError

    @classmethod
    @override
    def forward(cls, ctx: Any, name: str, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        _Rule.save(ctx, name, tensors)
        theta, z, *linear = cls._split(ctx, tensors)
        return tuple(_below(cls.call, theta, z[0], *linear, name))

    @classmethod
    @override
    def backward(cls, ctx: Any, *w: Tensor | None) -> Any:
        at = cls._at(ctx)
        wants, _, *linear_wants = cls._split(ctx, ctx.needs_input_grad[1:])
        gradients = _onto(cls.gradient(at, w) if any(wants) else None, at.theta)
        for i, group in enumerate(at.linear):
            gradients = [*gradients, *([None] if i == 0 else []), *_onto(cls.transpose(at, i, w) if any(linear_wants[i]) else None, group)]
        return None, *gradients

    @classmethod
    @override
    def jvp(cls, ctx: Any, _: Any, *tangents: Tensor | None) -> Any:
        at = cls._at(ctx)
        h, _, *linear = cls._split(ctx, tangents)
        terms = [cls.along(at, h)] if _some(h) else []
        for i, d in enumerate(linear):
            if _some(d):
                terms.append(cls.call(at.theta, at.z, *at.linear[:i], d, *at.linear[i + 1 :], at.name))
        return tuple(sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True))

    @classmethod
    def _split(cls, ctx: Any, flat: Sequence[Any]) -> list[Sequence[Any]]:
        compiled = ctx.bound.compiled
        sizes = {"g": len(compiled.outputs), "h": len(compiled.parameters), "z": 1}
        parts, start = [], 0
        for kind in "hz" + cls.groups:
            parts.append(flat[start : start + sizes[kind]])
            start += sizes[kind]
        return parts

    @classmethod
    def _at(cls, ctx: Any) -> _At:
        theta, z, *linear = cls._split(ctx, ctx.saved_tensors)
        return _At(theta, z[0], linear, ctx.bound.name)


class Vjp(_Linear):
    """J'g."""

    groups = "g"

    @classmethod
    @override
    def gradient(cls, at: _At, w: Parts) -> Sequence[Tensor]:
        return Hvp.call(at.theta, at.z, at.linear[0], w, at.name)

    @classmethod
    @override
    def along(cls, at: _At, h: Parts) -> Sequence[Tensor]:
        return Hvp.call(at.theta, at.z, at.linear[0], h, at.name)

    @classmethod
    @override
    def transpose(cls, at: _At, i: int, w: Parts) -> Sequence[Tensor]:
        return Jvp.call(at.theta, at.z, w, at.name)


class Jvp(_Linear):
    """Jh."""

    groups = "h"

    @classmethod
    @override
    def gradient(cls, at: _At, w: Parts) -> Sequence[Tensor]:
        return Hvp.call(at.theta, at.z, w, at.linear[0], at.name)

    @classmethod
    @override
    def along(cls, at: _At, h: Parts) -> Sequence[Tensor]:
        return Second.call(at.theta, at.z, at.linear[0], h, at.name)

    @classmethod
    @override
    def transpose(cls, at: _At, i: int, w: Parts) -> Sequence[Tensor]:
        return Vjp.call(at.theta, at.z, w, at.name)


class Hvp(_Linear):
    """(d^2 <g, f>) h, symmetric as a form in h and its own cotangent."""

    groups = "gh"

    @classmethod
    @override
    def transpose(cls, at: _At, i: int, w: Parts) -> Sequence[Tensor]:
        g, h = at.linear
        return Second.call(at.theta, at.z, h, w, at.name) if i == 0 else Hvp.call(at.theta, at.z, g, w, at.name)


class Second(_Linear):
    """D^2 f [h, k]."""

    groups = "hh"

    @classmethod
    @override
    def transpose(cls, at: _At, i: int, w: Parts) -> Sequence[Tensor]:
        return Hvp.call(at.theta, at.z, w, at.linear[1 - i], at.name)
