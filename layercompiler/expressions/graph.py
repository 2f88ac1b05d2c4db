"""A smooth expression as frozen data: nodes in the order of evaluation, built with shared sub-expressions merged.

A graph knows no framework and no modelling language. It is evaluated by `layercompiler.arrays`, with any leading batch dimensions that
broadcast over all inputs:

    builder = Builder()
    x, p = builder.input(0, (3,)), builder.input(1, (3,))
    graph = builder.graph([builder.call("multiply", builder.call("sin", x), p)])
    (value,) = graph.evaluate(xp, [x_batch, p_one])            # x_batch (B, 3), p_one (3,) -> (B, 3)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layercompiler import arrays as xps
from layercompiler.expressions.node import Node, Shape
from layercompiler.expressions.operation import OPERATIONS


@dataclass(frozen=True, eq=False)
class Graph:
    """Expressions of some inputs.

    Attributes:
        nodes: In an order of evaluation.
        outputs: Positions of the nodes that are the values.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]

    def inputs(self) -> dict[int, Shape]:
        """The inputs that the graph reads and their shapes."""
        return {node.options[0]: node.shape for node in self.nodes if node.operation == "input"}

    def shapes(self) -> tuple[Shape, ...]:
        """Shapes of the values, without batch dimensions."""
        return tuple(self.nodes[k].shape for k in self.outputs)

    def constants(self, xp: Any, like: Any = None) -> list[tuple[Any, ...]]:
        """The host arrays of all nodes as arrays of a framework, in dtype and device of `like`; pass them to `evaluate`."""
        return [tuple(xp.new(array, like) for array in node.arrays) for node in self.nodes]

    def evaluate(self, xp: Any, inputs: Sequence[Any], constants: Sequence[Any] | None = None) -> list[Any]:
        """Values at the inputs.

        Args:
            xp: Array functions (`layercompiler.arrays`).
            inputs: Arrays (batch..., *shape) by number of the input; None where the graph does not read it. Batches broadcast.
            constants: What `constants` returned, to convert them once for many evaluations.

        Returns:
            One array (batch..., *shape) for each output. One that reads no input has no batch.
        """
        if constants is None:
            read = next((inputs[n.options[0]] for n in self.nodes if n.operation == "input"), None)
            constants = self.constants(xp, read)
        values: list[Any] = []
        for node, arrays in zip(self.nodes, constants, strict=True):
            if node.operation == "input":
                values.append(inputs[node.options[0]])
            elif node.operation == "constant":
                values.append(arrays[0])
            else:
                shapes = [self.nodes[k].shape for k in node.arguments]
                values.append(OPERATIONS[node.operation].evaluate(xp, node, shapes, [values[k] for k in node.arguments], arrays))
        return [values[k] for k in self.outputs]

    def select(self, outputs: Sequence[int]) -> Graph:
        """The graph of other nodes as values, without what they do not need."""
        needed, stack = set(), list(outputs)
        while stack:
            k = stack.pop()
            if k not in needed:
                needed.add(k)
                stack.extend(self.nodes[k].arguments)
        position = {k: i for i, k in enumerate(sorted(needed))}
        nodes = []
        for k in sorted(needed):
            node = self.nodes[k]
            nodes.append(Node(node.operation, tuple(position[a] for a in node.arguments), node.shape, node.options, node.arrays))
        return Graph(tuple(nodes), tuple(position[k] for k in outputs))


@dataclass
class Builder:
    """Collects nodes; equal nodes are one, and what is constant is computed at once."""

    nodes: list[Node] = field(default_factory=list)
    _known: dict[Any, int] = field(default_factory=dict)

    def input(self, number: int, shape: Shape) -> int:
        """The node of an input."""
        return self._add(Node("input", (), tuple(shape), (number,)))

    def constant(self, value: Any) -> int:
        """The node of a constant (float64)."""
        array = np.array(value, dtype=np.float64)
        return self._add(Node("constant", (), array.shape, (), (array,)))

    def call(self, operation: str, *arguments: int, options: tuple[Any, ...] = (), arrays: tuple[np.ndarray, ...] = ()) -> int:
        """The node of an operation on nodes."""
        kind = OPERATIONS[operation]
        shape = kind.shape(options, [self.nodes[k].shape for k in arguments], arrays)
        node = Node(operation, tuple(arguments), tuple(int(n) for n in shape), options, arrays)
        if all(self.nodes[k].operation == "constant" for k in arguments):
            return self.constant(self._fold(kind, node))
        return self._add(node)

    def value(self, k: int) -> np.ndarray | None:
        """The value of a node that is constant, else None."""
        node = self.nodes[k]
        return node.arrays[0] if node.operation == "constant" else None

    def shape(self, k: int) -> Shape:
        """Shape of a node's value."""
        return self.nodes[k].shape

    def graph(self, outputs: Sequence[int]) -> Graph:
        """The frozen graph of some nodes."""
        return Graph(tuple(self.nodes), tuple(outputs)).select(outputs)

    def append(self, graph: Graph, inputs: dict[int, int]) -> list[int]:
        """Evaluate a graph at nodes of this one: `inputs` gives a node for each input. Returns the nodes of its values."""
        position: list[int] = []
        for node in graph.nodes:
            if node.operation == "input":
                position.append(inputs[node.options[0]])
            elif node.operation == "constant":
                position.append(self._add(node))
            else:
                arguments = [position[k] for k in node.arguments]
                position.append(self.call(node.operation, *arguments, options=node.options, arrays=node.arrays))
        return [position[k] for k in graph.outputs]

    def _fold(self, kind: Any, node: Node) -> np.ndarray:
        shapes = [self.nodes[k].shape for k in node.arguments]
        values = [self.nodes[k].arrays[0] for k in node.arguments]
        with np.errstate(all="ignore"):
            return np.asarray(kind.evaluate(xps.get("numpy"), node, shapes, values, node.arrays), dtype=np.float64).reshape(node.shape)

    def _add(self, node: Node) -> int:
        key = (node.operation, node.arguments, node.shape, node.options, tuple((a.dtype.str, a.shape, a.tobytes()) for a in node.arrays))
        if key not in self._known:
            self._known[key] = len(self.nodes)
            self.nodes.append(node)
        return self._known[key]
