"""The sparse Jacobian of a graph, by as many directional derivatives as its pattern needs colors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.expressions.graph import Graph
from layercompiler.expressions.layout import flatten
from layercompiler.expressions.sparsity import color, columns_of, pattern


@dataclass(frozen=True, eq=False)
class SparseJacobian:
    """Values and Jacobian of a graph by its first inputs.

    The inputs 0 ... k - 1 of the graph are the variables, in this order, flat in one vector z (batch..., n); the others are held fixed.

    Attributes:
        graph: The expressions; their values, flat and one after the other, are the residual (batch..., m).
        shapes: Shapes of the variables.
        rows: Row of each stored entry of the Jacobian, in the order of CSR.
        columns: Column of each stored entry.
        colors: Color of each column.
    """

    graph: Graph
    shapes: tuple[tuple[int, ...], ...]
    rows: np.ndarray
    columns: np.ndarray
    colors: np.ndarray

    @classmethod
    def of(cls, graph: Graph, shapes: Sequence[tuple[int, ...]]) -> SparseJacobian:
        """Find pattern and colors; `shapes` are those of the variables."""
        starts, count = columns_of(shapes)
        structure = pattern(graph, starts, count)
        rows = np.repeat(np.arange(structure.shape[0]), np.diff(structure.indptr))
        return cls(graph, tuple(shapes), rows, np.asarray(structure.indices, dtype=np.int64), color(structure))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        m = sum(int(np.prod(s, dtype=int)) for s in self.graph.shapes())
        return m, len(self.colors)

    @property
    def seeds(self) -> np.ndarray:
        """(colors, n): for each color the sum of its columns' unit vectors."""
        count = int(self.colors.max(initial=-1)) + 1
        return (self.colors[None, :] == np.arange(count)[:, None]).astype(float)

    def residual(self, xp: Any, z: Any, fixed: Sequence[Any], constants: Sequence[Any] | None = None) -> Any:
        """(batch..., m) values at z (batch..., n), given the other inputs."""
        start, inputs = 0, []
        for shape in self.shapes:
            size = int(np.prod(shape, dtype=int))
            inputs.append(xp.reshape(z[..., start : start + size], (*z.shape[:-1], *shape)))
            start += size
        values = self.graph.evaluate(xp, [*inputs, *fixed], constants)
        shapes = self.graph.shapes()
        from layercompiler.expressions.layout import spread

        flat = [flatten(xp, v, s) for v, s in zip(values, shapes, strict=True)]
        flat = spread(xp, flat, [(int(f.shape[-1]),) for f in flat])
        return flat[0] if len(flat) == 1 else xp.concat(flat, axis=-1)

    def values(self, xp: Any, z: Any, fixed: Sequence[Any], constants: Sequence[Any] | None = None) -> Any:
        """(batch..., entries) of the Jacobian at z (batch..., n), in the order of `rows` and `columns`.

        Cost: one directional derivative of the residual per color, all in one vectorised evaluation.
        """
        seeds = xp.new(self.seeds, z)

        def along(seed: Any) -> Any:
            tangent = xp.zeros_like(z) + seed
            return xp.jvp(lambda v: self.residual(xp, v, fixed, constants), (z,), (tangent,))[1]

        compressed = xp.vmap(along)(seeds)  # (colors, batch..., m)
        moved = xp.moveaxis(compressed, 0, -2)
        flat = xp.reshape(moved, (*moved.shape[:-2], -1))
        return xp.take(flat, xp.new(self.colors[self.columns] * self.shape[0] + self.rows), axis=-1)
