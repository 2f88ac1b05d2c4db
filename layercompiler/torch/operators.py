"""The five host functions as operators of torch's dispatcher, so that every transform composes with them.

An `autograd.Function` alone cannot be traced by torch.compile when it has a forward-mode rule, and a `torch.library.custom_op` alone
has none: its tangents come back as silent zeros. So the operators are registered here key by key, with the Function as the Autograd kernel:

    CPU (no autograd)      host.py: numpy inside
    Autograd               rules.py: reverse and forward mode, once per level of autograd
    vmap                   the mapped dimension becomes one more batch dimension: one call to the host
    fake (compile, export) shapes only

Operators are stateless: they take the parameters and z, and a string that names the problem. All tensors are float64 on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from layercompiler.errors import UnsupportedTransformError
from layercompiler.torch import host, rules
from layercompiler.torch.registry import Bound, find, pin

Parts = Sequence[Tensor | None]

_library = torch.library.Library("layercompiler", "DEF")
_SCHEMAS = {
    "solve": "(Tensor[] theta, Tensor? warm, str dtypes, str problem) -> Tensor[]",
    "vjp": "(Tensor[] theta, Tensor z, Tensor?[] g, str problem) -> Tensor[]",
    "jvp": "(Tensor[] theta, Tensor z, Tensor?[] h, str problem) -> Tensor[]",
    "hvp": "(Tensor[] theta, Tensor z, Tensor?[] g, Tensor?[] h, str problem) -> Tensor[]",
    "second": "(Tensor[] theta, Tensor z, Tensor?[] h, Tensor?[] k, str problem) -> Tensor[]",
}


# ---------------------------------------------------------------------------------------------------------------------- shapes


def _batch(theta: Sequence[Tensor], problem: str) -> tuple[int, ...]:
    specs = find(problem).compiled.parameters
    return tuple(torch.broadcast_shapes(*(t.shape[: t.ndim - len(p.shape)] for t, p in zip(theta, specs, strict=True))))


def _empty(like: Tensor | None, shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=torch.float64) if like is None else like.new_empty(tuple(shape), dtype=torch.float64)


def _fake_solve(theta: Sequence[Tensor], warm: Tensor | None, dtypes: str, problem: str) -> list[Tensor]:
    pin(problem)
    compiled, batch = find(problem).compiled, _batch(theta, problem)
    like = theta[0] if theta else None
    return [_empty(like, batch + tuple(o.shape)) for o in compiled.outputs] + [_empty(like, (*batch, compiled.zsize))]


def _lead(z: Tensor, theta: Sequence[Tensor], problem: str, kinds: str, groups: Sequence[Parts]) -> tuple[int, ...]:
    return tuple(torch.broadcast_shapes(*(host.extra(g, _ranks(z, theta, problem, k)) for k, g in zip(kinds, groups, strict=True))))


def _ranks(z: Tensor, theta: Sequence[Tensor], problem: str, kind: str) -> list[int]:
    return host.ranks(theta) if kind == "h" else host.output_ranks(find(problem), z)


def _fake_linear(kinds: str, result: str) -> Callable[..., list[Tensor]]:
    def fake(theta: Sequence[Tensor], z: Tensor, *rest: Any) -> list[Tensor]:
        *groups, problem = rest
        lead = _lead(z, theta, problem, kinds, groups)
        if result == "h":
            return [_empty(z, lead + tuple(t.shape)) for t in theta]
        return [_empty(z, lead + tuple(z.shape[:-1]) + tuple(o.shape)) for o in find(problem).compiled.outputs]

    return fake


# ------------------------------------------------------------------------------------------------------------------------ vmap


def _mapped(tensor: Tensor, dim: int | None, size: int, at: int, pad: int = 0) -> Tensor:
    """`tensor` with its mapped dimension (expanded where there is none) at position `at`, followed by `pad` dimensions of length 1."""
    tensor = tensor.unsqueeze(at) if dim is None else tensor.movedim(dim, at)
    for _ in range(pad):
        tensor = tensor.unsqueeze(at + 1)
    return tensor.expand(*tensor.shape[:at], size, *tensor.shape[at + 1 :])


def _aligned(theta: Sequence[Tensor], dims: Sequence[int | None], size: int, problem: str) -> tuple[list[Tensor], list[int]]:
    """Parameters with the mapped dimension in front of all batch dimensions, and how many dimensions of length 1 each needed."""
    specs = find(problem).compiled.parameters
    leads = [t.ndim - (d is not None) - len(p.shape) for t, d, p in zip(theta, dims, specs, strict=True)]
    pads = [max(leads) - lead for lead in leads]
    return [_mapped(t, d, size, 0, pad) for t, d, pad in zip(theta, dims, pads, strict=True)], pads


def _vmap_solve(
    info: Any, in_dims: Any, theta: Sequence[Tensor], warm: Tensor | None, dtypes: str, problem: str
) -> tuple[list[Tensor], list[int]]:
    dims, warm_dim, _, _ = in_dims
    if warm is not None:
        warm = _mapped(warm, warm_dim, info.batch_size, 0)
    result = rules.Solve.operator(_aligned(theta, dims, info.batch_size, problem)[0], warm, dtypes, problem)
    return result, [0] * len(result)


def _vmap_linear(rule: Any, kinds: str, result: str) -> Callable[..., tuple[list[Tensor], list[int]]]:
    def vmap(info: Any, in_dims: Any, theta: Sequence[Tensor], z: Tensor, *rest: Any) -> tuple[list[Tensor], list[int]]:
        *groups, problem = rest
        dims, z_dim, *group_dims, _ = in_dims
        call, size = rule.operator, info.batch_size
        ranks = {
            "h": [t.ndim - (d is not None) for t, d in zip(theta, dims, strict=True)],
            "g": [z.ndim - (z_dim is not None) - 1 + len(o.shape) for o in find(problem).compiled.outputs],
        }
        leads = [
            next((p.ndim - (d is not None) - r for p, d, r in zip(g, ds, ranks[kind], strict=True) if p is not None), 0)
            for kind, g, ds in zip(kinds, groups, group_dims, strict=True)
        ]
        at = max(leads)
        if z_dim is None and all(d is None for d in dims):  # one solution, many cotangents or tangents: one evaluation serves them all
            moved = [
                [None if p is None else _mapped(p, d, size, 0, at - lead) for p, d in zip(g, ds, strict=True)]
                if any(d is not None for d in ds)
                else g
                for g, ds, lead in zip(groups, group_dims, leads, strict=True)
            ]
            out = call(theta, z, *moved, problem)
            return out, [0] * len(out)
        wide, pads = _aligned(theta, dims, size, problem)
        moved = [
            [
                None if p is None else _mapped(p, d, size, lead, pad)
                for p, d, pad in zip(g, ds, pads if kind == "h" else [0] * len(g), strict=True)
            ]
            for kind, g, ds, lead in zip(kinds, groups, group_dims, leads, strict=True)
        ]
        out = call(wide, _mapped(z, z_dim, size, 0), *moved, problem)
        if result == "h":
            out = [o.reshape(*o.shape[: at + 1], *o.shape[at + 1 + k :]) for o, k in zip(out, pads, strict=True)]
        return out, [at] * len(out)

    return vmap


def _vmap_legacy(vmap: Callable[..., tuple[list[Tensor], list[int]]]) -> Callable[..., list[Tensor]]:
    """The same rule for the older vmap behind `autograd.grad(is_grads_batched=True)` and `autograd.functional`."""

    def batched(*arguments: Any) -> list[Tensor]:
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        if level != 1:
            raise UnsupportedTransformError("nested vectorize=True or is_grads_batched=True", mend="nest torch.func.vmap instead")
        is_mapped = torch._C._functorch.is_legacy_batchedtensor
        dims = tree_map(lambda t: 0 if isinstance(t, Tensor) and is_mapped(t) else None, arguments)
        remove, add = torch._C._VariableFunctions._remove_batch_dim, torch._C._VariableFunctions._add_batch_dim
        bare = tree_map(lambda t: remove(t, level, 1, 0) if isinstance(t, Tensor) and is_mapped(t) else t, arguments)
        size = next(t.shape[0] for t, d in zip(tree_leaves(bare), tree_leaves(dims, lambda d: d is None), strict=True) if d == 0)
        results, places = vmap(_Info(size), dims, *bare)
        return [add(t, place, level) for t, place in zip(results, places, strict=True)]

    return batched


class _Info(NamedTuple):
    batch_size: int


# -------------------------------------------------------------------------------------------------------------------- register


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of a problem as a function of its name."""

    def named(*arguments: Any) -> Any:
        *groups, problem = arguments
        return function(*groups, find(problem))

    return named


def _register(rule: Any, kernel: Callable[..., Any], fake: Callable[..., Any], vmap: Callable[..., Any]) -> None:
    name = rule.__name__.lower()
    _library.define(name + _SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, _named(kernel), "CompositeExplicitAutograd")
    _library.impl(name, _named(rule.record), "Autograd")
    _library.impl(name, _vmap_legacy(vmap), "Batched")
    torch.library.register_fake(f"layercompiler::{name}", fake, lib=_library)
    torch.library.register_vmap(f"layercompiler::{name}", vmap, lib=_library)
    rule.kernel = staticmethod(kernel)


_register(rules.Solve, host.solve, _fake_solve, _vmap_solve)
for _rule, _kernel, _result in (
    (rules.Vjp, host.vjp, "h"),
    (rules.Jvp, host.jvp, "g"),
    (rules.Hvp, host.hvp, "h"),
    (rules.Second, host.second, "g"),
):
    _register(_rule, _kernel, _fake_linear(_rule.kinds, _result), _vmap_linear(_rule, _rule.kinds, _result))


def solve(theta: Sequence[Tensor], warm: Tensor | None, dtypes: str, bound: Bound) -> list[Tensor]:
    """Outputs and z under whatever transforms are active; see `host.solve`."""
    if torch.compiler.is_compiling():
        return rules.Solve.operator(theta, warm, dtypes, bound.name)
    return rules.Solve.call(theta, warm, dtypes, bound)
