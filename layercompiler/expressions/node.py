"""One node of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One operation.

    Attributes:
        operation: Its name in `layercompiler.expressions.operation.OPERATIONS`, or "input" or "constant".
        arguments: Positions of the nodes it reads, all before its own.
        shape: Shape of its value, without batch dimensions.
        options: Plain numbers, strings and tuples of them that the operation needs.
        arrays: Host arrays that the operation needs (values of a constant, indices of a gather); converted once per evaluation.
    """

    operation: str
    arguments: tuple[int, ...]
    shape: Shape
    options: tuple[Any, ...] = ()
    arrays: tuple[np.ndarray, ...] = ()

    @property
    def size(self) -> int:
        """Number of entries of the value."""
        return int(np.prod(self.shape, dtype=np.int64))
