"""What an operation is, and the table of them.

An operation is one object with three functions, so that adding one is adding one entry of the table: its shape, its value, and which
entries of its arguments each entry of its value depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from layercompiler.expressions.node import Node, Shape

Pattern = Any  # sp.csr_array of booleans as int8, (entries of a node, number of columns)


@dataclass(frozen=True)
class Operation:
    """An operation of a graph.

    Attributes:
        name: Its name in graphs.
        shape: (options, shapes of the arguments, arrays) -> shape of the value.
        evaluate: (xp, node, shapes, values, arrays) -> value, under any batch.
        pattern: (node, shapes, patterns, constants) -> pattern of the value: which columns each entry depends on, given those of the
            arguments; `constants` holds values of arguments that are constant, else None.
    """

    name: str
    shape: Callable[[tuple[Any, ...], Sequence[Shape], tuple[np.ndarray, ...]], Shape]
    evaluate: Callable[[Any, Node, Sequence[Shape], Sequence[Any], tuple[Any, ...]], Any]
    pattern: Callable[[Node, Sequence[Shape], Sequence[Pattern], Sequence[Any]], Pattern]


OPERATIONS: dict[str, Operation] = {}


def register(*operations: Operation) -> None:
    """Make operations known under their names."""
    OPERATIONS.update({operation.name: operation for operation in operations})


def positions(shape: Shape) -> np.ndarray:
    """The flat position of every entry, in the shape."""
    return np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)


def rows(pattern: Pattern, index: np.ndarray) -> Pattern:
    """The pattern of a gather: row i is row index[i]; -1 gives an empty row."""
    index = np.asarray(index).reshape(-1)
    selector = sp.csr_array(
        (np.ones(int(np.sum(index >= 0)), np.int8), index[index >= 0], np.concatenate([[0], np.cumsum(index >= 0)])),
        shape=(len(index), pattern.shape[0]),
    )
    return boolean(selector @ pattern)


def boolean(pattern: Any) -> Pattern:
    """All stored entries as ones; entries that are zero are dropped."""
    out = sp.csr_array(pattern)
    out.eliminate_zeros()
    out.data = np.ones(len(out.data), np.int8)
    return out


def union(patterns: Sequence[Pattern]) -> Pattern:
    """Entries of any of the patterns."""
    total = patterns[0]
    for other in patterns[1:]:
        total = total + other
    return boolean(total)


def mixed(size: int, patterns: Sequence[Pattern]) -> Pattern:
    """Every one of `size` entries depends on all that the arguments depend on."""
    columns = np.unique(np.concatenate([p.indices for p in patterns])) if patterns else np.zeros(0, int)
    indptr = np.arange(size + 1) * len(columns)
    return sp.csr_array((np.ones(size * len(columns), np.int8), np.tile(columns, size), indptr), shape=(size, patterns[0].shape[1]))
