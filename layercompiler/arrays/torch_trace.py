"""Functions of torch tensors recorded once per shape as flat graphs, so that nested transformations cost nothing later."""

from __future__ import annotations

import operator
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from layercompiler.errors import UnsupportedTransformError

_KEPT = 64
Held = list[tuple[torch.Tensor, torch.Tensor]]  # tensors that a function closes over, and copies of what they held


def changed(held: Held) -> bool:
    """Whether tensors hold other numbers than their copies, or require a gradient by now."""
    for now, then in held:
        if now.requires_grad or (not torch.equal(now, then) and _differ(now, then)):
            return True
    return False


def _differ(now: torch.Tensor, then: torch.Tensor) -> bool:
    return bool(((now != then) & ((now == now) | (then == then))).any())  # NaN is what it was


class Traced:
    """A function recorded at its first call with inputs of given shapes.

    The function must not look at numbers. It is recorded again when a tensor that it closes over has changed; one that requires a
    gradient is refused, since its gradient would be lost.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._graphs: OrderedDict[Any, tuple[Callable[..., Any], Any, Held]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *tensors: torch.Tensor) -> Any:
        graph, spec, tensors = self._find(tensors)
        with torch.no_grad():
            values = graph(*tensors)
        return tuple(values) if spec is None else pytree.tree_unflatten(values, spec)

    def _find(self, tensors: tuple[torch.Tensor, ...]) -> tuple[Callable[..., Any], Any, tuple[torch.Tensor, ...]]:
        """The graph for tensors like these, the structure of its value where that is not a tuple, and the tensors."""
        # views in the graph are right for the strides it was recorded with
        tensors = tuple([t if t.is_contiguous() or (t.ndim > 1 and t.mT.is_contiguous()) else t.contiguous() for t in tensors])
        key = tuple([(t.shape, t.stride(), t.dtype, t.device) for t in tensors])
        found = self._graphs.get(key)
        if found is None or changed(found[2]):
            with self._lock:
                found = self._graphs.get(key)
                if found is None or changed(found[2]):
                    found = self._graphs[key] = self._record(tensors)
                    while len(self._graphs) > _KEPT:
                        self._graphs.popitem(last=False)
        return found[0], found[1], tensors

    def _record(self, tensors: tuple[torch.Tensor, ...]) -> tuple[Callable[..., Any], Any, Held]:
        module, inputs, spec, _ = record(self._function, tensors)
        _overwrite(module, {})
        module.recompile()
        flat = spec.type is tuple and all(child.is_leaf() for child in spec.children())
        return _compiled(module, inputs), None if flat else spec, module.meta["held"]  # type: ignore[return-value]

    def __reduce__(self) -> tuple[Any, ...]:
        return Traced, (self._function,)


class Repeated(Traced):
    """See `Arrays.repeated`: the loop, too, runs in torch's interpreter where there is one."""

    def __init__(self, function: Callable[..., Any], first: int, going: int) -> None:
        super().__init__(function)
        self._first, self._going = first, going

    def __call__(self, tensors: tuple[torch.Tensor, ...], limit: int, least: int, every: int) -> tuple[tuple[torch.Tensor, ...], int]:  # type: ignore[override]
        loop, _, tensors = self._find(tensors)
        with torch.no_grad():
            values, turns = loop(*tensors, limit, least, every)
        return tuple(values), turns

    def __reduce__(self) -> tuple[Any, ...]:
        return Repeated, (self._function, self._first, self._going)

    def _record(self, tensors: tuple[torch.Tensor, ...]) -> tuple[Callable[..., Any], Any, Held]:
        module, inputs, *_ = record(self._function, tensors)
        names = [f"x{k}" for k in range(len(tensors))]
        state = names[self._first :]
        owned = sorted(names.index(name) for name in _overwrite(module, dict(enumerate(state))))  # by the loop, which copies them first
        module.recompile()
        loop = (
            f"def forward(self, {', '.join(names)}, limit: int, least: int, every: int) -> Tuple[List[Tensor], int]:\n"
            f"  turn = 0\n"
            + "".join(f"  {names[k]} = {names[k]}.clone()\n" for k in owned)
            + f"  while turn < limit and (turn % every != 0 or int(torch.sum({names[self._going]})) > least):\n"
            f"    new = self.step({', '.join(names)})\n"
            + "".join(f"    {name} = new[{k}]\n" for k, name in enumerate(state))
            + f"    turn += 1\n  return [{', '.join(state)}], turn\n"
        )
        return _compiled(module, inputs, loop) or self._in_python(module.forward, owned), None, module.meta["held"]

    def _in_python(self, step: Callable[..., Any], owned: list[int]) -> Callable[..., Any]:
        def loop(*arguments: Any) -> tuple[list[torch.Tensor], int]:
            *tensors, limit, least, every = arguments
            turn = 0
            for k in owned:
                tensors[k] = tensors[k].clone()
            while turn < limit and (turn % every != 0 or int(torch.sum(tensors[self._going])) > least):
                tensors[self._first :] = step(*tensors)
                turn += 1
            return tensors[self._first :], turn

        return loop


class _Tape(TorchDispatchMode):
    """Records operations below all transformations, where tensors are plain."""

    def __init__(self, module: torch.nn.Module, inputs: list[torch.Tensor]) -> None:
        super().__init__()
        self.module, self.graph, self.mutable = module, fx.Graph(), False
        self.nodes: dict[int, fx.Node] = {}
        self.held: Held = []
        self.alive: list[Any] = []  # so that no id is used twice
        for position, tensor in enumerate(inputs):
            self.bind(tensor, self.graph.placeholder(f"x{position}"))

    def bind(self, tensor: torch.Tensor, node: fx.Node) -> None:
        self.nodes[id(tensor)] = node
        self.alive.append(tensor)
        node.meta["like"] = (tuple(tensor.shape), tensor.dtype, tensor.device)

    def node(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self.nodes:
            if value.requires_grad:
                raise UnsupportedTransformError(
                    "a residual closes over a tensor that requires a gradient, which would be lost",
                    expected="every such tensor among the parameters",
                    mend="make the tensor a parameter of the problem and an argument of the residual",
                )
            self.bind(value, _attach(self.module, self.graph, value))
            self.held.append((value, value.detach().clone()))
        return self.nodes[id(value)]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is _aten._local_scalar_dense.default:
            raise UnsupportedTransformError(
                "a residual looks at the numbers of a tensor", got=str(function), mend="use torch.where instead of branches"
            )
        taken = pytree.tree_map(self.node, (args, kwargs))
        result = function(*args, **kwargs)
        if not isinstance(result, (torch.Tensor, tuple, list)):
            return result  # a fact about shapes
        made = self.graph.call_function(function, *taken)
        self.mutable |= function._schema.is_mutable
        if isinstance(result, torch.Tensor):
            self.bind(result, made)
        elif isinstance(result, (tuple, list)):
            for k, part in enumerate(result):
                if isinstance(part, torch.Tensor):
                    self.bind(part, self.graph.call_function(operator.getitem, (made, k)))
        return result


def _attach(module: torch.nn.Module, graph: fx.Graph, tensor: torch.Tensor) -> fx.Node:
    name = f"c{sum(1 for _ in module.buffers())}"
    module.register_buffer(name, tensor.detach(), persistent=False)
    return graph.get_attr(name)


def record(function: Callable[..., Any], tensors: tuple[torch.Tensor, ...]) -> tuple[fx.GraphModule, list[torch.Tensor], Any, list[Any]]:
    """(graph of plain operations, the inputs it was recorded with, structure of its value, the value's leaves)."""
    # distinct tensors: inputs that are one object would be taken for one argument
    inputs = [t.detach().clone() for t in tensors]
    tape = _Tape(torch.nn.Module(), inputs)
    with torch.no_grad(), tape:
        value = function(*inputs)
    leaves, spec = pytree.tree_flatten(value)
    tape.graph.output([tape.node(leaf) for leaf in leaves])
    module = fx.GraphModule(tape.module, tape.graph)
    if not tape.mutable:
        _fold(module)
        _simplify(module)
        _share(module)
        _fold(module)
        module.graph.eliminate_dead_code()
    module.meta.update(mutable=tape.mutable, held=tape.held)
    return module, inputs, spec, leaves


def _compiled(module: fx.GraphModule, inputs: list[torch.Tensor], loop: str = "") -> Callable[..., Any] | None:
    """The graph in torch's own interpreter, where this version has it: a third of Python's cost per operation.

    With the source of a method that calls `self.step`, that method instead; None where there is no interpreter.
    """
    if not hasattr(torch.jit, "trace"):
        return None if loop else module.forward
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecated in favour of torch.compile, which takes a minute and a compiler
        try:
            found: Any = torch.jit.trace(module.eval(), tuple(inputs), check_trace=False, strict=False)
            if loop:
                holder = torch.nn.Module()
                holder.step = found
                found = torch.jit.script(holder)
                found.define(loop)
            return torch.jit.freeze(found.eval()).forward
        except (RuntimeError, TypeError):
            return None if loop else module.forward


def _attribute(module: Any, target: str) -> Any:
    for part in target.split("."):
        module = getattr(module, part)
    return module


def _fold(module: fx.GraphModule) -> None:
    """Nodes that depend on no input, computed now."""
    values: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            values[node] = _attribute(module, node.target)
            continue
        if node.op != "call_function":
            continue
        fill = node.args[1] if node.target is _aten.full_like.default else _FILLS.get(node.target)
        if isinstance(fill, (int, float)) and _like(node) is not None:
            shape, dtype, device = node.meta["like"]
            value = torch.full(shape, fill, dtype=dtype, device=device)
        elif any(n not in values for n in node.all_input_nodes):
            continue
        else:
            arguments, named = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
            with torch.no_grad():
                value = node.target(*arguments, **named)
        values[node] = value
        if isinstance(value, torch.Tensor):
            with module.graph.inserting_before(node):
                constant = _attach(module, module.graph, value)
            constant.meta = dict(node.meta)
            values[constant] = value
            node.replace_all_uses_with(constant)
            module.graph.erase_node(node)


_aten = torch.ops.aten
_FILLS = {_aten.zeros_like.default: 0.0, _aten.new_zeros.default: 0.0, _aten.ones_like.default: 1.0}
_SAME = {_aten.alias.default, _aten.reshape.default, _aten.expand.default, _aten.detach.default}
_SAME |= {_aten.slice.Tensor, _aten._to_copy.default, _aten.lift_fresh_copy.default, _aten.clone.default}


def _like(node: Any) -> tuple[tuple[int, ...], torch.dtype, torch.device] | None:
    """Shape, dtype and device of a node's tensor."""
    return node.meta.get("like") if isinstance(node, fx.Node) else None


def _simplify(module: fx.GraphModule) -> None:
    """Operations that change nothing: views of the same shape, sums with zero, products with one."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or _like(node) is None or not node.args:
            continue
        if node.target in (_aten.view.default, _aten._unsafe_view.default):
            node.target = _aten.reshape.default  # a dropped copy may have been what made a view possible
        other = None
        if node.target in _SAME and _like(node.args[0]) == _like(node):
            other = node.args[0]
        elif node.target in (_aten.add.Tensor, _aten.mul.Tensor) and len(node.args) == 2 and not node.kwargs:
            neutral = 0.0 if node.target is _aten.add.Tensor else 1.0
            for kept, dropped in (node.args, node.args[::-1]):
                if _like(kept) == _like(node) and _constant(module, dropped) == neutral:
                    other = kept
        if other is not None:
            node.replace_all_uses_with(other)
            module.graph.erase_node(node)


def _constant(module: fx.GraphModule, value: Any) -> float | None:
    """The number that a constant is full of."""
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    tensor = _attribute(module, str(value.target))
    if not tensor.is_floating_point() or not tensor.numel():
        return None
    first = float(tensor.reshape(-1)[0])
    return first if bool((tensor == first).all()) else None


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


_IN_PLACE = {_aten.add.Tensor: _aten.add_.Tensor, _aten.sub.Tensor: _aten.sub_.Tensor, _aten.mul.Tensor: _aten.mul_.Tensor}
_IN_PLACE |= {_aten.div.Tensor: _aten.div_.Tensor, _aten.addcmul.default: _aten.addcmul_.default, _aten.neg.default: _aten.neg_.default}
_IN_PLACE |= {_aten.scatter.src: _aten.scatter_.src, _aten.scatter.value: _aten.scatter_.value, _aten.clamp.default: _aten.clamp_.default}
_IN_PLACE |= {_aten.baddbmm.default: _aten.baddbmm_.default, _aten.reciprocal.default: _aten.reciprocal_.default}
_IN_PLACE |= {_aten.abs.default: _aten.abs_.default, _aten.sqrt.default: _aten.sqrt_.default}


def _overwrite(module: fx.GraphModule, state: dict[int, str]) -> set[str]:
    """Operations write to their first argument where nothing reads it any more: fresh memory costs as much as the numbers.

    Args:
        module: The graph, which runs on plain tensors.
        state: Names of the arguments that are results of the turn before, by place among the results.

    Returns:
        Which of these are written to.
    """
    if module.meta["mutable"]:
        return set()
    nodes = list(module.graph.nodes)
    owner: dict[fx.Node, fx.Node] = {}  # whose memory it is
    last: dict[fx.Node, int] = {}  # where that is read last
    for place, node in enumerate(nodes):
        owner[node] = owner[node.args[0]] if _is_view(node) else node
        for a in node.all_input_nodes:
            last[owner[a]] = place
    results = [owner[a] if isinstance(a, fx.Node) else None for a in nodes[-1].args[0]]
    # results that are nobody else's
    ours = {state[k] for k, made in enumerate(results) if k in state and made and made.op == "call_function" and results.count(made) == 1}
    written = set()
    for place, node in enumerate(nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        old = node.args[0]
        free = (old.op == "call_function" and owner[old] is old) or old.name in ours
        if (
            not free
            or last[old] != place
            or _like(old) != _like(node)
            or any(owner[a] is old for a in node.all_input_nodes if a is not old)
        ):
            continue
        if node.target in _IN_PLACE:
            node.target = _IN_PLACE[node.target]
        elif node.target is _aten.diagonal_scatter.default:
            with module.graph.inserting_before(node):
                line = module.graph.call_function(_aten.diagonal.default, (old, *node.args[2:]))
                module.graph.call_function(_aten.copy_.default, (line, node.args[1]))
            node.target, node.args = _aten.alias.default, (old,)
        else:
            continue
        written |= {old.name} & ours
    return written


def _is_view(node: fx.Node) -> bool:
    """Whether a node may share the memory of its first argument."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.target is operator.getitem:
        return _is_view(node.args[0])
    return node.target is _aten.reshape.default or any(r.alias_info is not None for r in node.target._schema.returns)  # type: ignore[union-attr]


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    return (type(value), value) if isinstance(value, (int, float, bool)) else value
