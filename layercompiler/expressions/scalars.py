"""Graphs of scalar operations: equal nodes are one, derivatives are more nodes, and a set of outputs becomes a straight-line program.

Where a graph of arrays has one node for a product of matrices, this has one for each multiplication: what remains of the sparsity of a
residual is found by itself, and nothing is left to dispatch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

from layercompiler.errors import BuildError

# In the order of `TapeOperation` of the kernels, which runs the programs.
NAMES = (
    *("load", "store", "add", "sub", "mul", "div", "fma", "neg"),
    *("sqrt", "exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh"),
    *("atanh", "log1p", "expm1", "erf", "abs", "sign"),
    *("atan2", "pow", "less", "less_equal", "equal", "select", "min", "max", "fms", "fnma"),
)
CODES = {name: k for k, name in enumerate(NAMES)}
_UNARY = {name: getattr(np, {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}.get(name, name), None) for name in NAMES[8:28]}
_UNARY |= {"asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "erf": lambda x: math.erf(float(x)), "neg": np.negative}
_PLAIN: dict[str, Callable[..., Any]] = {
    **{name: f for name, f in _UNARY.items() if f is not None},
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "atan2": np.arctan2,
    "pow": np.power,
    "less": np.less,
    "less_equal": np.less_equal,
    "equal": np.equal,
    "min": np.minimum,
    "max": np.maximum,
}
_COMMUTE = {"add", "mul", "equal", "min", "max"}
_FLAT = {"less", "less_equal", "equal", "sign"}  # derivative zero wherever there is one
# branches, and operations whose derivatives need not be finite in a branch that is not taken
_GUARDED = {"select", "div", "sqrt", "log", "pow", "asin", "acos", "acosh", "atanh", "log1p", "tan", "atan2"}


class TooLargeError(BuildError):
    """A graph has more nodes than is worth to spell out."""


class Scalars:
    """A growing graph. Nodes are integers in an order of evaluation.

    A product with the constant zero is the constant zero: numbers that overflow on the way to it are not seen.

    Args:
        limit: Most nodes.
    """

    def __init__(self, limit: int = 200_000) -> None:
        self.operation: list[str] = []
        self.arguments: list[tuple[int, ...]] = []
        self.number: list[float | None] = []
        self.limit = limit
        self._seen: dict[Any, int] = {}
        self.zero, self.one = self.constant(0.0), self.constant(1.0)

    def constant(self, value: float) -> int:
        """A number."""
        value = float(value)
        return self._node(("constant", value, math.copysign(1.0, value)), "constant", (), value)

    def input(self, key: Any) -> int:
        """A number known when the program runs, by a hashable key."""
        return self._node(("input", key), "input", (), None)

    def _node(self, key: Any, operation: str, arguments: tuple[int, ...], number: float | None) -> int:
        found = self._seen.get(key)
        if found is None:
            found = len(self.operation)
            if found >= self.limit:
                raise TooLargeError("a residual is too large to be spelled out in scalars", got=f"more than {self.limit} operations")
            self._seen[key] = found
            self.operation.append(operation)
            self.arguments.append(arguments)
            self.number.append(number)
        return found

    def call(self, name: str, *a: int) -> int:
        """An operation on nodes, simplified."""
        numbers = [self.number[k] for k in a]
        if name == "select":
            if numbers[0] is not None:
                return a[1] if numbers[0] != 0 else a[2]
            a = (a[0], *(self._case(k, a[0], i) for i, k in enumerate(a[1:])))
            if a[1] == a[2]:
                return a[1]
        elif all(n is not None for n in numbers):
            with np.errstate(all="ignore"):
                return self.constant(float(_PLAIN[name](*(np.float64(n) for n in numbers))))
        if name == "add":
            if numbers[0] == 0:
                return a[1]
            if numbers[1] == 0:
                return a[0]
            if [self.operation[k] for k in a] == ["select", "select"]:
                (c, yes, no), (other, *two) = (self.arguments[k] for k in a)
                if c == other and self.zero in (yes, two[0]) and self.zero in (no, two[1]):  # one of them is zero in each case
                    return self.call("select", c, self.call("add", yes, two[0]), self.call("add", no, two[1]))
            for x, y in (a, a[::-1]):
                if self.operation[y] == "neg":
                    return self.call("sub", x, self.arguments[y][0])
        elif name == "sub":
            if numbers[1] == 0:
                return a[0]
            if numbers[0] == 0:
                return self.call("neg", a[1])
            if self.operation[a[1]] == "neg":
                return self.call("add", a[0], self.arguments[a[1]][0])
        elif name == "mul":
            if 0 in numbers:
                return self.zero
            for k in (0, 1):
                if numbers[k] == 1:
                    return a[1 - k]
                if numbers[k] == -1:
                    return self.call("neg", a[1 - k])
            for k in (0, 1):
                if self.operation[a[k]] == "neg":
                    return self.call("neg", self.call("mul", self.arguments[a[k]][0], a[1 - k]))
        elif name == "div":
            if numbers[0] == 0:
                return self.zero
            if numbers[1] is not None and abs(math.frexp(numbers[1])[0]) == 0.5 and 1e-300 < abs(numbers[1]) < 1e300:
                return self.call("mul", a[0], self.constant(1 / numbers[1]))  # a power of two: the same number
        elif name == "neg" and self.operation[a[0]] == "neg":
            return self.arguments[a[0]][0]
        elif name == "neg" and self.operation[a[0]] == "sub":
            return self.call("sub", *self.arguments[a[0]][::-1])
        elif name == "pow" and numbers[1] is not None:
            power = numbers[1]
            if power == 0:
                return self.one
            if power in (1, 2, 3, 4):
                square = self.call("mul", a[0], a[0]) if power > 1 else a[0]
                return {1: lambda: a[0], 2: lambda: square, 3: lambda: self.call("mul", square, a[0])}.get(
                    int(power), lambda: self.call("mul", square, square)
                )()
            if power == 0.5:
                return self.call("sqrt", a[0])
            if power in (-1, -2):
                return self.call("div", self.one, self.call("pow", a[0], self.constant(-power)))
        if name in _COMMUTE and a[0] > a[1]:
            a = a[::-1]
        return self._node((name, *a), name, a, None)

    def _case(self, k: int, condition: int, otherwise: int) -> int:
        """A node where the condition is known."""
        if self.operation[k] == "select" and self.arguments[k][0] == condition:
            return self.arguments[k][1 + otherwise]
        return k

    def total(self, nodes: Iterable[int]) -> int:
        """The sum, in order."""
        found = self.zero
        for k in nodes:
            found = self.call("add", found, k)
        return found

    def dot(self, a: Sequence[int], b: Sequence[int]) -> int:
        """Sum of products."""
        return self.total(self.call("mul", x, y) for x, y in zip(a, b, strict=True))

    # Derivatives -------------------------------------------------------------------------------------------------------------

    def partials(self, k: int) -> list[tuple[int, int]]:
        """(argument, partial derivative) of an operation; arguments without influence are left out."""
        name, a, c = self.operation[k], self.arguments[k], self.call
        if name in ("constant", "input") or name in _FLAT:
            return []
        if name == "add":
            return [(a[0], self.one), (a[1], self.one)]
        if name == "sub":
            return [(a[0], self.one), (a[1], self.constant(-1.0))]
        if name == "mul":
            return [(a[0], a[1]), (a[1], a[0])]
        if name == "div":
            inverse = c("div", self.one, a[1])
            return [(a[0], inverse), (a[1], c("neg", c("mul", k, inverse)))]
        if name == "select":
            return [(a[1], c("select", a[0], self.one, self.zero)), (a[2], c("select", a[0], self.zero, self.one))]
        if name == "atan2":
            d = c("add", c("mul", a[0], a[0]), c("mul", a[1], a[1]))
            inverse = c("div", self.one, d)
            return [(a[0], c("mul", a[1], inverse)), (a[1], c("neg", c("mul", a[0], inverse)))]
        if name == "pow":
            lower = c("mul", a[1], c("pow", a[0], c("sub", a[1], self.one)))
            if self.number[a[1]] is not None:
                return [(a[0], lower)]
            # x^0 is one for all x, and 0^y zero for all y, up to the ends of where they are so
            flat = c("mul", c("equal", a[0], self.zero), c("less_equal", self.zero, a[1]))
            rest = c("mul", k, c("log", c("select", flat, self.one, a[0])))
            return [(a[0], c("select", c("equal", a[1], self.zero), self.zero, lower)), (a[1], c("select", flat, self.zero, rest))]
        if name in ("min", "max"):
            first = c("less", *(a if name == "min" else a[::-1]))
            same = c("mul", c("equal", *a), self.constant(0.5))  # both halves where they are equal, as the frameworks do
            there = c("add", first, same)
            return [(a[0], there), (a[1], c("sub", self.one, there))]
        return [(a[0], self._slope(name, a[0], k))]

    def _slope(self, name: str, x: int, y: int) -> int:
        c, one = self.call, self.one
        square = c("mul", x, x)
        rules: dict[str, Callable[[], int]] = {
            "neg": lambda: self.constant(-1.0),
            "sqrt": lambda: c("div", self.constant(0.5), y),
            "exp": lambda: y,
            "log": lambda: c("div", one, x),
            "sin": lambda: c("cos", x),
            "cos": lambda: c("neg", c("sin", x)),
            "tan": lambda: c("add", one, c("mul", y, y)),
            "asin": lambda: c("div", one, c("sqrt", c("sub", one, square))),
            "acos": lambda: c("div", self.constant(-1.0), c("sqrt", c("sub", one, square))),
            "atan": lambda: c("div", one, c("add", one, square)),
            "sinh": lambda: c("cosh", x),
            "cosh": lambda: c("sinh", x),
            "tanh": lambda: c("sub", one, c("mul", y, y)),
            "asinh": lambda: c("div", one, c("sqrt", c("add", square, one))),
            "acosh": lambda: c("div", one, c("sqrt", c("sub", square, one))),
            "atanh": lambda: c("div", one, c("sub", one, square)),
            "log1p": lambda: c("div", one, c("add", one, x)),
            "expm1": lambda: c("add", y, one),
            "erf": lambda: c("mul", self.constant(2 / math.sqrt(math.pi)), c("exp", c("neg", square))),
            "abs": lambda: c("sign", x),
        }
        return rules[name]()

    def _chain(self, partial: int, d: int, k: int) -> int:
        return self.chain(partial, d) if self.operation[k] in _GUARDED else self.call("mul", partial, d)

    def chain(self, partial: int, d: int) -> int:
        """The product of two derivatives: exactly zero in a branch where one of them is, so that what is not taken cannot spoil it."""
        for x, y in ((partial, d), (d, partial)):
            if self.operation[x] == "select" and self.zero in self.arguments[x]:
                condition, yes, no = self.arguments[x]
                return self.call("select", condition, *(k if k == self.zero else self.chain(k, y) for k in (yes, no)))
        return self.call("mul", partial, d)

    def forward(self, outputs: Sequence[int], seeds: dict[int, dict[Any, int]]) -> list[dict[Any, int]]:
        """Derivatives of the outputs: for each the columns that have one.

        Args:
            outputs: Nodes.
            seeds: Columns and derivatives of the nodes (inputs, mostly) that move.
        """
        derivative = dict(seeds)
        for k in self.order(outputs):
            if k in derivative:
                continue
            found: dict[Any, int] = {}
            for argument, partial in self.partials(k) if any(a in derivative for a in self.arguments[k]) else []:
                for column, d in derivative.get(argument, {}).items():
                    term = self._chain(partial, d, k)
                    if term != self.zero:
                        found[column] = self.call("add", found[column], term) if column in found else term
            if found:
                derivative[k] = found
        return [derivative.get(k, {}) for k in outputs]

    def reverse(self, outputs: dict[int, int], wanted: Iterable[int]) -> dict[int, int]:
        """Gradient of sum_k weight_k output_k by the wanted nodes; `outputs` holds the weights. Nodes without influence are left out."""
        goals = set(wanted)
        gradient = self.adjoints(outputs, goals)
        return {k: gradient[k] for k in goals if k in gradient}

    def adjoints(self, outputs: dict[int, int], goals: Collection[int]) -> dict[int, int]:
        """As `reverse`, by all nodes between the goals and the outputs."""
        order = self.order(list(outputs))
        moving = set()
        for k in order:
            if k in goals or any(a in moving for a in self.arguments[k]):
                moving.add(k)
        gradient = dict(outputs)
        for k in reversed(order):
            g = gradient.get(k, self.zero)
            if k not in moving or k in goals or g == self.zero:
                continue
            for argument, partial in self.partials(k):
                if argument in moving:
                    term = self._chain(partial, g, k)
                    gradient[argument] = self.call("add", gradient.get(argument, self.zero), term)
        return gradient

    def order(self, outputs: Sequence[int]) -> list[int]:
        """The nodes that outputs are made of, in an order of evaluation."""
        needed, stack = set(), list(outputs)
        while stack:
            k = stack.pop()
            if k not in needed:
                needed.add(k)
                stack.extend(self.arguments[k])
        return sorted(needed)


def program(graph: Scalars, outputs: Sequence[tuple[int, Any]]) -> tuple[np.ndarray, np.ndarray, int, list[Any], list[Any]]:
    """A straight-line program: (code (length, 5), constants, registers, keys of input slots, keys of output slots).

    Nodes are visited depth first, so that values live shortly, and registers are used again.
    """
    uses: dict[int, int] = {}
    for k in graph.order([k for k, _ in outputs]):
        for a in graph.arguments[k]:
            uses[a] = uses.get(a, 0) + 1
    for k, _ in outputs:
        uses[k] = uses.get(k, 0) + 1
    once = {k for k, count in uses.items() if count == 1}
    constants: dict[int, int] = {}
    for k in sorted(uses):
        if graph.operation[k] == "constant":
            constants[k] = len(constants)
    place, free, top = dict(constants), [], len(constants)
    code: list[tuple[int, ...]] = []
    inputs: list[Any] = []
    keys = {node: key[1] for key, node in graph._seen.items() if key[0] == "input"}

    def release(k: int) -> None:
        uses[k] -= 1
        if not uses[k] and k not in constants:
            free.append(place.pop(k))

    def merged(k: int) -> tuple[str, tuple[int, ...]]:
        """The instruction of a node: a product that is used once goes into its sum or difference."""
        name, arguments = graph.operation[k], graph.arguments[k]
        single = [graph.operation[a] == "mul" and a in once for a in arguments]
        if name == "add" and any(single):
            product, other = arguments if single[0] else arguments[::-1]
            return "fma", (*graph.arguments[product], other)
        if name == "sub" and any(single):
            product, other = arguments[::-1] if single[1] else arguments
            return "fnma" if single[1] else "fms", (*graph.arguments[product], other)
        return name, arguments

    def visit(root: int) -> None:
        nonlocal top
        stack = [(root, False)]
        while stack:
            k, ready = stack.pop()
            if k in place:
                continue
            if not ready:
                instruction[k] = merged(k)
                stack.append((k, True))
                stack.extend((a, False) for a in reversed(instruction[k][1]) if a not in place)
                continue
            name, arguments = instruction[k]
            if name == "input":
                inputs.append(keys[k])
                made = (CODES["load"], (len(inputs) - 1, 0, 0))
            else:
                made = (CODES[name], (*(place[a] for a in arguments), 0, 0)[:3])
                for a in arguments:
                    release(a)
            if free:
                at = free.pop()
            else:
                at, top = top, top + 1
            place[k] = at
            code.append((made[0], at, *made[1]))

    instruction: dict[int, tuple[str, tuple[int, ...]]] = {}
    slots = []
    for k, key in outputs:
        visit(k)
        code.append((CODES["store"], 0, place[k], len(slots), 0))
        slots.append(key)
        release(k)
    values = np.array([graph.number[k] for k in constants], float)
    return np.array(code, np.int32).reshape(-1, 5), values, max(top, 1), inputs, slots
