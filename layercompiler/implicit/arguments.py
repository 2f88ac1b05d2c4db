"""User functions of nested arguments as functions of flat arrays: one array for the unknown, a tuple of arrays for what it depends on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import Any

import numpy as np

from layercompiler.arrays import Arrays
from layercompiler.errors import ShapeError

Function = Callable[..., Any]


def portable(f: Function) -> bool:
    """Whether f is written for array functions, f(xp, ...), or natively in one framework: by the name of its first parameter."""
    if isinstance(f, FunctionType) and not hasattr(f, "__wrapped__"):  # its signature takes longer than many a layer
        return f.__code__.co_varnames[: f.__code__.co_argcount][:1] == ("xp",)
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        return False
    return bool(parameters) and parameters[0].name == "xp"


def bound(f: Function, xp: Arrays) -> Function:
    """f with the array functions as its first argument, if it takes them."""
    return (lambda *args, **named: f(xp, *args, **named)) if portable(f) else f


class Unknown:
    """The shape of the unknown: a nest of arrays (batch..., event...) as one array.

    A single array stays as it is; several are laid side by side, (batch..., n).
    """

    def __init__(self, xp: Arrays, example: Any, batch: int = 0) -> None:
        self.xp, self.batch = xp, batch
        leaves, self.build = xp.tree(example)
        leaves = [xp.asarray(leaf) if xp.is_array(leaf) else xp.new(np.asarray(leaf, dtype=float)) for leaf in leaves]
        self.shapes = [tuple(int(s) for s in leaf.shape) for leaf in leaves]
        self.sizes = [int(np.prod(s[batch:], dtype=np.int64)) for s in self.shapes]
        self.like = leaves[0] if leaves else None
        self.plain = xp.is_array(example) and not isinstance(example, (np.ndarray, np.generic))
        if any(s[:batch] != self.shapes[0][:batch] for s in self.shapes):
            raise ShapeError("parts of the unknown have different batch dimensions", got=str([s[:batch] for s in self.shapes]))

    @property
    def single(self) -> bool:
        """Whether the unknown is one array."""
        return len(self.shapes) == 1

    def flatten(self, value: Any) -> Any:
        """One array of a nest."""
        xp = self.xp
        if self.plain and type(value) is type(self.like):
            return value
        leaves = xp.tree(value)[0]
        leaves = [leaf if xp.is_array(leaf) and not isinstance(leaf, np.ndarray) else xp.new(leaf, self.like) for leaf in leaves]
        if len(leaves) != len(self.shapes):
            raise ShapeError("the structure differs from that of the unknown", expected=f"{len(self.shapes)} arrays", got=str(len(leaves)))
        if self.single:
            return leaves[0]
        lead = self.shapes[0][: self.batch]
        return xp.concat([xp.reshape(leaf, (*lead, n)) for leaf, n in zip(leaves, self.sizes, strict=True)], axis=self.batch)

    def unflatten(self, y: Any) -> Any:
        """The nest of one array, which may have more leading dimensions than the example."""
        if self.plain:
            return y
        if self.single:
            return self.build([y])
        ends = np.cumsum([0, *self.sizes])
        lead = tuple(y.shape[:-1])
        cut = zip(ends, ends[1:], self.shapes, strict=False)
        return self.build([self.xp.reshape(y[..., a:b], (*lead, *s[self.batch :])) for a, b, s in cut])


@dataclass(frozen=True)
class Arguments:
    """Positional and named arguments, split into arrays and the rest.

    Attributes:
        arrays: The arrays among the leaves.
    """

    xp: Arrays
    args: tuple[Any, ...]
    named: dict[str, Any]
    constant: frozenset[int] = frozenset()

    @cached_property
    def _parts(self) -> tuple[list[Any], Function, list[int]]:
        leaves, build = self.xp.tree([list(self.args), dict(self.named)])
        at = [i for i, leaf in enumerate(leaves) if self.xp.is_array(leaf)]
        leaves = [
            self.xp.asarray(leaf) if i in at and isinstance(leaf, (np.ndarray, np.generic)) else leaf for i, leaf in enumerate(leaves)
        ]
        return leaves, build, at

    @cached_property
    def arrays(self) -> tuple[Any, ...]:
        """The arrays; those of arguments in `constant` are cut from differentiation."""
        leaves, _, at = self._parts
        if not self.constant:
            return tuple(leaves[i] for i in at)
        owner = [k for k, a in enumerate(self.args) for _ in self.xp.tree(a)[0]]
        cut = {i for i in at if i < len(owner) and owner[i] in self.constant}
        return tuple(self.xp.stop_gradient(leaves[i]) if i in cut else leaves[i] for i in at)

    @cached_property
    def _plain(self) -> bool:
        return not self.named and all(self.xp.is_array(a) for a in self.args)

    def rebuild(self, arrays: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and named arguments with other arrays."""
        leaves, build, at = self._parts
        if self._plain:
            return list(arrays), {}
        leaves = list(leaves)
        for i, value in zip(at, arrays, strict=True):
            leaves[i] = value
        args, named = build(leaves)
        return args, named
