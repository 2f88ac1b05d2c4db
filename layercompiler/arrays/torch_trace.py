"""Functions of torch tensors recorded once per shape as flat graphs, so that nested transformations cost nothing later."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from layercompiler.errors import UnsupportedTransformError

_KEPT = 64


class Traced:
    """A function recorded at its first call with inputs of given shapes.

    The function must not look at numbers, and what it closes over becomes constant: a closed-over tensor that requires a gradient is
    refused, since its gradient would be lost.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._graphs: OrderedDict[Any, tuple[Callable[..., Any], Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *tensors: torch.Tensor) -> Any:
        key = tuple((t.shape, t.dtype, t.device) for t in tensors)
        found = self._graphs.get(key)
        if found is None:
            with self._lock:
                found = self._graphs.get(key)
                if found is None:
                    found = self._graphs[key] = _record(self._function, tensors)
                    while len(self._graphs) > _KEPT:
                        self._graphs.popitem(last=False)
        graph, spec = found
        with torch.no_grad():
            return pytree.tree_unflatten(graph(*tensors), spec)

    def __reduce__(self) -> tuple[Any, ...]:
        return Traced, (self._function,)


def _record(function: Callable[..., Any], tensors: tuple[torch.Tensor, ...]) -> tuple[Callable[..., Any], Any]:
    spec: Any = None

    def flat(*inputs: torch.Tensor) -> list[torch.Tensor]:
        nonlocal spec
        leaves, spec = pytree.tree_flatten(function(*inputs))
        return leaves

    # distinct tensors: inputs that are one object would be taken for one argument
    inputs = [t.detach().clone() for t in tensors]
    with torch.no_grad():
        module = make_fx(flat, tracing_mode="real", _error_on_data_dependent_ops=True)(*inputs)
    for node in module.graph.nodes:
        if node.op == "get_attr" and getattr(_attribute(module, node.target), "requires_grad", False):
            raise UnsupportedTransformError(
                "a residual closes over a tensor that requires a gradient, which would be lost",
                expected="every such tensor among the parameters",
                mend="make the tensor a parameter of the problem and an argument of the residual",
            )
    _fold(module)
    _share(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    return _compiled(module, inputs), spec


def _compiled(module: fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
    """The graph in torch's own interpreter, where this version has it: a third of Python's cost per operation."""
    if not hasattr(torch.jit, "trace"):
        return module.forward
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecated in favour of torch.compile, which takes a minute and a compiler
        try:
            return torch.jit.freeze(torch.jit.trace(module.eval(), tuple(inputs), check_trace=False, strict=False))
        except (RuntimeError, TypeError):
            return module.forward


def _attribute(module: Any, target: str) -> Any:
    for part in target.split("."):
        module = getattr(module, part)
    return module


def _fold(module: fx.GraphModule) -> None:
    """Nodes that depend on no input, computed now."""
    values: dict[fx.Node, Any] = {}
    count = 0
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            values[node] = _attribute(module, node.target)
            continue
        if node.op != "call_function" or any(n not in values for n in node.all_input_nodes):
            continue
        arguments, named = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        with torch.no_grad():
            value = node.target(*arguments, **named)
        values[node] = value
        if isinstance(value, torch.Tensor):
            name = f"_folded{count}"
            count += 1
            module.register_buffer(name, value, persistent=False)
            with module.graph.inserting_before(node):
                constant = module.graph.get_attr(name)
            values[constant] = value
            node.replace_all_uses_with(constant)
            module.graph.erase_node(node)


def _share(module: fx.GraphModule) -> None:
    """Equal nodes become one."""
    seen: dict[Any, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            key = ("get_attr", id(_attribute(module, node.target)))
        elif node.op == "call_function" and not getattr(getattr(node.target, "_schema", None), "is_mutable", True):
            try:
                key = (node.target, _frozen(node.args), _frozen(tuple(sorted(node.kwargs.items()))))
                hash(key)
            except TypeError:
                continue
        else:
            continue
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            module.graph.erase_node(node)


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    return (type(value), value) if isinstance(value, (int, float, bool)) else value
