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
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from typing_extensions import override

from layercompiler.errors import UnsupportedTransformError
from layercompiler.torch.registry import Bound

Parts = Sequence[Tensor | None]


def _plain() -> bool:
    """True where nothing but eager reverse mode is at work, so that the detour over the dispatcher can be left out."""
    return not (
        torch.compiler.is_compiling()  # first: dynamo reads no further
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def _bare(tensors: Sequence[Tensor]) -> bool:
    """True where no tensor is the wrapper of a transform, be it one that has ended (`torch.func.vjp` keeps such)."""
    return not any([is_functorch_wrapped_tensor(t) or is_legacy_batchedtensor(t) for t in tensors])


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
    """The point of a derivative: parameters, solution, linear groups, and the problem."""

    theta: Sequence[Tensor]
    z: Tensor
    linear: list[Parts]
    bound: Bound


class _Rule(torch.autograd.Function):
    """One of the five functions: its operator, its host function, and its record in the graph of reverse mode.

    Arguments of all three are some groups of tensors and then, last, the problem: its name for the operator.
    """

    kernel: Any  # operators.py sets it

    @staticmethod
    def operator(*arguments: Any) -> list[Tensor]:
        """The function through the dispatcher."""
        raise NotImplementedError

    @classmethod
    def call(cls, *arguments: Any) -> list[Tensor]:
        """The function under whatever transforms are active."""
        if _plain():
            tensors = [t for t in cls.flat(arguments[:-1]) if isinstance(t, Tensor)]
            if _bare(tensors):
                if torch.is_grad_enabled() and any([t.requires_grad for t in tensors]):
                    return cls.record(*arguments)
                return cls.kernel(*arguments)
        return cls.operator(*arguments[:-1], arguments[-1].name)

    @classmethod
    def below(cls, *arguments: Any) -> list[Tensor]:
        """The function at the levels of autograd below this one."""
        if _plain():
            return cls.kernel(*arguments)
        *groups, bound = arguments
        if not torch._C._are_functorch_transforms_active():
            with torch._C._AutoDispatchBelowAutograd():
                return cls.operator(*groups, bound.name)
        # Function.apply has switched both modes off for its own level; the levels below have their own say.
        with torch.enable_grad(), _set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
            return cls.operator(*groups, bound.name)

    @classmethod
    def record(cls, *arguments: Any) -> list[Tensor]:
        """The function, recorded at this level of autograd and no other."""
        # Function.apply would hand it on to the functorch levels below; their turn comes in `below`.
        *groups, bound = arguments
        apply = super(torch.autograd.Function, cls).apply  # type: ignore[misc]
        if not torch._C._are_functorch_transforms_active():
            return list(apply(bound, *cls.flat(groups)))
        with enable_single_level_autograd_function():
            return list(apply(bound, *cls.flat(groups)))

    @classmethod
    def flat(cls, groups: Sequence[Any]) -> list[Any]:
        """The members of all groups in a row, as autograd wants them."""
        raise NotImplementedError

    @staticmethod
    def save(ctx: Any, bound: Bound, tensors: Parts) -> None:
        ctx.bound = bound  # keeps the problem as long as the graph lives
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)


class Solve(_Rule):
    """Groups: parameters, warm start, dtypes (see host.solve)."""

    @staticmethod
    @override
    def operator(*arguments: Any) -> list[Tensor]:
        return torch.ops.layercompiler.solve.default(*arguments)

    @classmethod
    @override
    def flat(cls, groups: Sequence[Any]) -> list[Any]:
        theta, warm, dtypes = groups
        return [dtypes, warm, *theta]

    @staticmethod
    @override
    def forward(ctx: Any, bound: Bound, dtypes: str, warm: Tensor | None, *theta: Tensor) -> tuple[Tensor, ...]:
        *outputs, z = Solve.below(theta, warm, dtypes, bound)
        ctx.mark_non_differentiable(z)
        _Rule.save(ctx, bound, (*theta, z))
        return *outputs, z

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Any) -> Any:
        *theta, z = ctx.saved_tensors
        g = gradients[:-1]
        return None, None, None, *_onto(Vjp.call(theta, z, g, ctx.bound) if _some(g) else None, theta)

    @staticmethod
    @override
    def jvp(ctx: Any, *tangents: Any) -> Any:
        *theta, z = ctx.saved_tensors
        return *Jvp.call(theta, z, tangents[3:], ctx.bound), None


class _Linear(_Rule):
    """Groups: parameters, z, and those that it is linear in; `kinds` has "g" for cotangents and "h" for tangents."""

    kinds: str

    @classmethod
    def gradient(cls, at: _At, w: Parts) -> Sequence[Tensor]:
        """Transposed derivative in the parameters, with the linear groups fixed."""
        raise _third_order()

    @classmethod
    def along(cls, at: _At, h: Parts) -> Sequence[Tensor]:
        """Derivative in the parameters along h, with the linear groups fixed."""
        raise _third_order()

    @classmethod
    def transpose(cls, at: _At, i: int, w: Parts) -> Sequence[Tensor]:
        """Transpose of the map from linear group i."""
        raise NotImplementedError

    @classmethod
    @override
    def flat(cls, groups: Sequence[Any]) -> list[Any]:
        theta, z, *linear = groups
        return [*theta, z, *(t for group in linear for t in group)]

    @classmethod
    @override
    def forward(cls, ctx: Any, bound: Bound, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        _Rule.save(ctx, bound, tensors)
        theta, z, *linear = cls._split(bound, tensors)
        return tuple(cls.below(theta, z[0], *linear, bound))

    @classmethod
    @override
    def backward(cls, ctx: Any, *w: Tensor | None) -> Any:
        at = cls._at(ctx)
        wants, _, *linear_wants = cls._split(ctx.bound, ctx.needs_input_grad[1:])
        gradients = [None, *_onto(cls.gradient(at, w) if any(wants) else None, at.theta), None]
        for i, group in enumerate(at.linear):
            gradients += _onto(cls.transpose(at, i, w) if any(linear_wants[i]) else None, group)
        return tuple(gradients)

    @classmethod
    @override
    def jvp(cls, ctx: Any, _: Any, *tangents: Tensor | None) -> Any:
        at = cls._at(ctx)
        h, _, *linear = cls._split(ctx.bound, tangents)
        terms = [cls.along(at, h)] if _some(h) else []
        for i, d in enumerate(linear):
            if _some(d):
                terms.append(cls.call(at.theta, at.z, *at.linear[:i], d, *at.linear[i + 1 :], at.bound))
        return tuple(sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True))

    @classmethod
    def _split(cls, bound: Bound, flat: Sequence[Any]) -> list[Sequence[Any]]:
        sizes = {"g": len(bound.compiled.outputs), "h": len(bound.compiled.parameters), "z": 1}
        groups, start = [], 0
        for kind in "hz" + cls.kinds:
            groups.append(flat[start : start + sizes[kind]])
            start += sizes[kind]
        return groups

    @classmethod
    def _at(cls, ctx: Any) -> _At:
        theta, z, *linear = cls._split(ctx.bound, ctx.saved_tensors)
        return _At(theta, z[0], linear, ctx.bound)


class Vjp(_Linear):
    """J'g."""

    kinds = "g"

    @staticmethod
    @override
    def operator(*arguments: Any) -> list[Tensor]:
        return torch.ops.layercompiler.vjp.default(*arguments)

    @classmethod
    @override
    def gradient(cls, at: _At, w: Parts) -> Sequence[Tensor]:
        return Hvp.call(at.theta, at.z, at.linear[0], w, at.bound)

    @classmethod
    @override
    def along(cls, at: _At, h: Parts) -> Sequence[Tensor]:
        return Hvp.call(at.theta, at.z, at.linear[0], h, at.bound)

    @classmethod
    @override
    def transpose(cls, at: _At, i: int, w: Parts) -> Sequence[Tensor]:
        return Jvp.call(at.theta, at.z, w, at.bound)


class Jvp(_Linear):
    """Jh."""

    kinds = "h"

    @staticmethod
    @override
    def operator(*arguments: Any) -> list[Tensor]:
        return torch.ops.layercompiler.jvp.default(*arguments)

    @classmethod
    @override
    def gradient(cls, at: _At, w: Parts) -> Sequence[Tensor]:
        return Hvp.call(at.theta, at.z, w, at.linear[0], at.bound)

    @classmethod
    @override
    def along(cls, at: _At, h: Parts) -> Sequence[Tensor]:
        return Second.call(at.theta, at.z, at.linear[0], h, at.bound)

    @classmethod
    @override
    def transpose(cls, at: _At, i: int, w: Parts) -> Sequence[Tensor]:
        return Vjp.call(at.theta, at.z, w, at.bound)


class Hvp(_Linear):
    """(d^2 <g, f>) h, symmetric as a form in h and its own cotangent."""

    kinds = "gh"

    @staticmethod
    @override
    def operator(*arguments: Any) -> list[Tensor]:
        return torch.ops.layercompiler.hvp.default(*arguments)

    @classmethod
    @override
    def transpose(cls, at: _At, i: int, w: Parts) -> Sequence[Tensor]:
        g, h = at.linear
        return Second.call(at.theta, at.z, h, w, at.bound) if i == 0 else Hvp.call(at.theta, at.z, g, w, at.bound)


class Second(_Linear):
    """D^2 f [h, k]."""

    kinds = "hh"

    @staticmethod
    @override
    def operator(*arguments: Any) -> list[Tensor]:
        return torch.ops.layercompiler.second.default(*arguments)

    @classmethod
    @override
    def transpose(cls, at: _At, i: int, w: Parts) -> Sequence[Tensor]:
        return Hvp.call(at.theta, at.z, w, at.linear[1 - i], at.bound)
