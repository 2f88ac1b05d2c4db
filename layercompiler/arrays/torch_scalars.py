"""Functions of torch tensors spelled out in scalars: recorded as a graph of plain operations, which are then done on arrays of nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from layercompiler.arrays.base import UnspelledError
from layercompiler.arrays.torch_trace import changed, record

aten = torch.ops.aten
_REPLACED = {
    "neg": "neg", "sqrt": "sqrt", "exp": "exp", "log": "log", "sin": "sin", "cos": "cos", "tan": "tan", "asin": "asin", "acos": "acos",
    "atan": "atan", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "log1p": "log1p",
    "expm1": "expm1", "erf": "erf", "abs": "abs", "sign": "sign", "sgn": "sign",
}  # fmt: skip


class Spelling:
    """Operations of torch on arrays of nodes of a graph of scalars (object arrays of integers).

    Args:
        graph: `layercompiler.expressions.scalars.Scalars`, or anything with its `constant` and `call`.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self._constant = np.frompyfunc(graph.constant, 1, 1)
        self._called: dict[tuple[str, int], Any] = {}

    def run(self, module: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs of a recorded module; raises UnspelledError for an operation that is not known here."""
        if module.meta["mutable"]:
            raise UnspelledError("operations in place")
        values: dict[Any, Any] = {}
        given = iter(inputs)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                target: Any = module
                for part in str(node.target).split("."):
                    target = getattr(target, part)
                values[node] = self.known(target)
            elif node.op == "call_function":
                function = OPERATIONS.get(node.target)
                if function is None:
                    raise UnspelledError(str(node.target))
                arguments = torch.fx.node.map_arg(node.args, lambda n: values[n])
                named = torch.fx.node.map_arg(node.kwargs, lambda n: values[n])
                values[node] = function(
                    self,
                    *arguments,
                    **{k: v for k, v in named.items() if k not in ("dtype", "device", "layout", "pin_memory", "memory_format")},
                )
                like = node.meta.get("like")
                if like is not None and tuple(values[node].shape) != like[0]:
                    raise UnspelledError(f"{node.target} gives {values[node].shape} for {like[0]}")
            elif node.op == "output":
                return [self.nodes(values[n] if isinstance(n, torch.fx.Node) else n) for n in node.args[0]]
        raise UnspelledError("a graph without output")

    def known(self, tensor: torch.Tensor) -> np.ndarray:
        """A constant: nodes, but numbers where the tensor holds integers."""
        array = tensor.detach().cpu().numpy()
        return array if array.dtype.kind in "iu" else self.nodes(array.astype(float))

    def nodes(self, x: Any) -> np.ndarray:
        """Nodes of anything."""
        if isinstance(x, np.ndarray) and x.dtype == object:
            return x
        return np.asarray(self._constant(np.asarray(x, float)), dtype=object)

    def call(self, name: str, *x: Any) -> np.ndarray:
        """An operation entry by entry."""
        key = (name, len(x))
        if key not in self._called:
            self._called[key] = np.frompyfunc(lambda *k: self.graph.call(name, *k), len(x), 1)
        return np.asarray(self._called[key](*(self.nodes(v) for v in x)), dtype=object)

    def fold(self, name: str, x: Any, axes: Any, keepdims: bool) -> np.ndarray:
        """Reduce by an operation of two nodes."""
        x = self.nodes(x)
        axes = (
            tuple(range(x.ndim))
            if axes is None or axes == []
            else tuple(a % x.ndim for a in ([axes] if isinstance(axes, int) else axes))
            if x.ndim
            else ()
        )
        rest = [a for a in range(x.ndim) if a not in axes]
        flat = np.transpose(x, (*rest, *axes)).reshape(*(x.shape[a] for a in rest), -1)
        if not flat.shape[-1]:
            if name != "add":
                raise UnspelledError(f"{name} of nothing")
            found = self.nodes(np.zeros(flat.shape[:-1]))
        else:
            found = np.asarray(flat[..., 0], dtype=object)
            for k in range(1, flat.shape[-1]):
                found = self.call(name, found, flat[..., k])
        return found.reshape([1 if a in axes else n for a, n in enumerate(x.shape)]) if keepdims else found

    def matmul(self, a: Any, b: Any) -> np.ndarray:
        """Products of matrices."""
        a, b = self.nodes(a), self.nodes(b)
        left, right = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
        found = self.nodes(np.zeros((*np.broadcast_shapes(left.shape[:-2], right.shape[:-2]), left.shape[-2], right.shape[-1])))
        for k in range(left.shape[-1]):
            found = self.call("add", found, self.call("mul", left[..., :, k, None], right[..., None, k, :]))
        found = found[..., 0] if b.ndim == 1 else found
        return np.asarray(found[..., 0, :] if a.ndim == 1 and b.ndim > 1 else found[..., 0] if a.ndim == 1 else found, dtype=object)


def _binary(name: str, swapped: bool = False, negated: bool = False) -> Callable[..., Any]:
    def run(s: Spelling, a: Any, b: Any) -> Any:
        found = s.call(name, b, a) if swapped else s.call(name, a, b)
        return s.call("sub", 1.0, found) if negated else found

    return run


def _sum_like(name: str, swapped: bool = False) -> Callable[..., Any]:
    def run(s: Spelling, a: Any, b: Any, alpha: float = 1) -> Any:
        b, a = (a, b) if swapped else (b, a)
        if _whole(a) and _whole(b):
            return np.asarray(a + alpha * b if name == "add" else a - alpha * b)
        return s.call(name, a, b if alpha == 1 else s.call("mul", b, alpha))

    return run


def _whole(x: Any) -> bool:
    return (isinstance(x, np.ndarray) and x.dtype.kind in "iu") or (isinstance(x, int) and not isinstance(x, bool))


def _slice(s: Spelling, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    where = [slice(None)] * x.ndim
    where[dim] = slice(start, None if end is None or end > 2**60 else end, step)
    return x[tuple(where)]


def _index(s: Spelling, x: Any, indices: Any) -> Any:
    if any(i is not None and i.dtype == object for i in indices):
        raise UnspelledError("an index that is computed")
    given = [k for k, i in enumerate(indices) if i is not None]
    if given != list(range(given[0], given[-1] + 1)):
        raise UnspelledError("indices with a gap")
    return np.asarray(x[tuple(slice(None) if i is None else i for i in indices)], dtype=x.dtype)


def _squeeze(s: Spelling, x: Any, dim: Any = None) -> Any:
    axes = range(x.ndim) if dim is None else [d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)]
    return x.reshape([n for a, n in enumerate(x.shape) if not (a in axes and n == 1)])


def _expand(s: Spelling, x: Any, shape: Any, **_: Any) -> Any:
    return np.broadcast_to(x, [x.shape[k - len(shape)] if n == -1 else n for k, n in enumerate(shape)])


def _cumsum(s: Spelling, x: Any, dim: int) -> Any:
    moved = np.moveaxis(s.nodes(x), dim, 0)
    rows = [moved[:1]]
    for k in range(1, len(moved)):
        rows.append(s.call("add", rows[-1], moved[k : k + 1]))
    return np.moveaxis(np.concatenate(rows), 0, dim)


def _norm(s: Spelling, x: Any, ord: float = 2, dim: Any = None, keepdim: bool = False) -> Any:
    if ord != 2:
        raise UnspelledError("norms that are not Euclidean")
    square = s.fold("add", s.call("mul", x, x), dim, keepdim)
    nothing = s.call("equal", square, 0.0)  # where the derivative is taken for zero
    return s.call("select", nothing, 0.0, s.call("sqrt", s.call("select", nothing, 1.0, square)))


def _clamp(s: Spelling, x: Any, lower: Any = None, upper: Any = None) -> Any:
    # the derivative of torch is one at the bounds themselves
    if lower is not None:
        x = s.call("select", s.call("less", x, lower), lower, x)
    return x if upper is None else s.call("select", s.call("less", upper, x), upper, x)


def _pow(s: Spelling, a: Any, b: Any) -> Any:
    return s.call("pow", a, b)


def _full(value: float) -> Callable[..., Any]:
    return lambda s, x, *rest: s.nodes(np.full(x.shape, value))


OPERATIONS: dict[Any, Callable[..., Any]] = {
    operator.getitem: lambda s, x, k: x[k],
    aten.add.Tensor: _sum_like("add"),
    aten.add.Scalar: _sum_like("add"),
    aten.sub.Tensor: _sum_like("sub"),
    aten.sub.Scalar: _sum_like("sub"),
    aten.rsub.Scalar: _sum_like("sub", True),
    aten.rsub.Tensor: _sum_like("sub", True),
    aten.mul.Tensor: _binary("mul"),
    aten.mul.Scalar: _binary("mul"),
    aten.div.Tensor: _binary("div"),
    aten.div.Scalar: _binary("div"),
    aten.reciprocal.default: lambda s, x: s.call("div", 1.0, x),
    aten.rsqrt.default: lambda s, x: s.call("div", 1.0, s.call("sqrt", x)),
    aten.square.default: lambda s, x: s.call("mul", x, x),
    aten.pow.Tensor_Scalar: _pow,
    aten.pow.Tensor_Tensor: _pow,
    aten.pow.Scalar: _pow,
    aten.atan2.default: _binary("atan2"),
    aten.maximum.default: _binary("max"),
    aten.minimum.default: _binary("min"),
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.default: _clamp,
    aten.relu.default: lambda s, x: s.call("select", s.call("less", 0.0, x), x, 0.0),
    aten.where.self: lambda s, c, a, b: s.call("select", c, a, b),
    aten.where.ScalarSelf: lambda s, c, a, b: s.call("select", c, a, b),
    aten.where.ScalarOther: lambda s, c, a, b: s.call("select", c, a, b),
    aten.logical_and.default: _binary("mul"),
    aten.bitwise_and.Tensor: _binary("mul"),
    aten.logical_or.default: _binary("max"),
    aten.bitwise_or.Tensor: _binary("max"),
    aten.logical_not.default: lambda s, x: s.call("sub", 1.0, x),
    aten.bitwise_not.default: lambda s, x: s.call("sub", 1.0, x),
    aten.sigmoid.default: lambda s, x: s.call("add", 0.5, s.call("mul", 0.5, s.call("tanh", s.call("mul", 0.5, x)))),
    aten.sum.default: lambda s, x: s.fold("add", x, None, False),
    aten.sum.dim_IntList: lambda s, x, dim=None, keepdim=False: s.fold("add", x, dim, keepdim),
    aten.mean.default: lambda s, x: s.call("mul", s.fold("add", x, None, False), 1 / max(x.size, 1)),
    aten.cumsum.default: _cumsum,
    aten.amax.default: lambda s, x, dim=None, keepdim=False: s.fold("max", x, dim, keepdim),
    aten.amin.default: lambda s, x, dim=None, keepdim=False: s.fold("min", x, dim, keepdim),
    aten.prod.default: lambda s, x: s.fold("mul", x, None, False),
    aten.linalg_vector_norm.default: _norm,
    aten.mm.default: Spelling.matmul,
    aten.bmm.default: Spelling.matmul,
    aten.mv.default: Spelling.matmul,
    aten.dot.default: Spelling.matmul,
    aten.addmm.default: lambda s, c, a, b: s.call("add", c, s.matmul(a, b)),
    aten.select.int: lambda s, x, dim, k: np.asarray(np.moveaxis(x, dim, 0)[k], dtype=x.dtype),
    aten.slice.Tensor: _slice,
    aten.unsqueeze.default: lambda s, x, dim: np.expand_dims(x, dim),
    aten.squeeze.default: _squeeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.expand.default: _expand,
    aten.reshape.default: lambda s, x, shape: x.reshape(shape),
    aten.view.default: lambda s, x, shape: x.reshape(shape),
    aten._unsafe_view.default: lambda s, x, shape: x.reshape(shape),
    aten._reshape_copy.default: lambda s, x, shape: x.reshape(shape),
    aten.permute.default: lambda s, x, dims: np.transpose(x, dims),
    aten.transpose.int: lambda s, x, a, b: np.swapaxes(x, a, b),
    aten.t.default: lambda s, x: x.T,
    aten.cat.default: lambda s, parts, dim=0: np.concatenate(_alike(s, parts), dim),
    aten.stack.default: lambda s, parts, dim=0: np.stack(_alike(s, parts), dim),
    aten.index_select.default: lambda s, x, dim, index: np.take(x, index, axis=dim),
    aten.index.Tensor: _index,
    aten.roll.default: lambda s, x, shifts, dims=(): np.roll(x, shifts, tuple(dims) or None),
    aten.flip.default: lambda s, x, dims: np.flip(x, dims),
    aten.diagonal.default: lambda s, x, offset=0, dim1=0, dim2=1: np.diagonal(x, offset, dim1, dim2),
    aten.zeros_like.default: _full(0.0),
    aten.ones_like.default: _full(1.0),
    aten.full_like.default: lambda s, x, value: s.nodes(np.full(x.shape, value)),
    aten.clone.default: lambda s, x: x,
    aten.alias.default: lambda s, x: x,
    aten.detach.default: lambda s, x: x,
    aten.contiguous.default: lambda s, x: x,
}  # fmt: skip
OPERATIONS |= {getattr(aten, theirs).default: (lambda s, x, name=name: s.call(name, x)) for theirs, name in _REPLACED.items()}
for _name, _entry, _swapped, _negated in (
    *(("lt", "less", False, False), ("le", "less_equal", False, False), ("gt", "less", True, False), ("ge", "less_equal", True, False)),
    *(("eq", "equal", False, False), ("ne", "equal", False, True)),
):
    for _kind in ("Scalar", "Tensor"):
        OPERATIONS[getattr(getattr(aten, _name), _kind)] = _binary(_entry, _swapped, _negated)


def _alike(s: Spelling, parts: Sequence[Any]) -> list[np.ndarray]:
    return [s.nodes(p) for p in parts] if any(p.dtype == object for p in parts) else list(parts)


def spell(
    function: Callable[..., Any], samples: Sequence[np.ndarray], inputs: Sequence[np.ndarray], graph: Any
) -> tuple[list[np.ndarray], list[np.ndarray], partial[bool]]:
    """A function of tensors as nodes: (nodes of its outputs, its outputs at the samples, whether what it closes over has changed since).

    The last holds pairs of these tensors and of copies of what they held as its argument.

    Args:
        function: Of tensors, without looking at numbers; a tuple of tensors.
        samples: Host arrays to record it with.
        inputs: Nodes of the inputs, object arrays of the same shapes.
        graph: See `Spelling`.

    Raises:
        UnspelledError: It does something that has no scalar form here.
    """
    tensors = tuple(torch.tensor(np.asarray(x, float)) for x in samples)
    module, _, _, leaves = record(function, tensors)
    return Spelling(graph).run(module, inputs), [leaf.detach().numpy() for leaf in leaves], partial(changed, module.meta["held"])
