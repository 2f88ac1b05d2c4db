"""Shortest paths on grids with node weights."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from layercompiler import kernels
from layercompiler.errors import OptionError
from layercompiler.solvers.oracles.base import NamedOracle, oracles, whole

MOST = 1e290  # larger weights count as it, so that no distance overflows
SMALL = 50_000  # cells of a batch that one thread does sooner than others wake up


@oracles.register
@dataclass(frozen=True)
class GridPath(NamedOracle):
    """The path of least total node weight from the top left to the bottom right cell of a grid, as the indicator of its cells.

    Args:
        rows: Rows of the grid.
        columns: Columns of the grid.
        neighbors: 4 or 8.
        floor: Weights below it count as `floor`: with negative weights a shortest path does not exist (perturbed weights may be).

    Cost: a few raster sweeps over each grid, in the compiled kernels; without them, Bellman-Ford as shifted minima over the whole
        batch, a few passes over the grid per cell of the longest path.
    """

    rows: int
    columns: int
    neighbors: int = 8
    floor: float = 1e-6
    name: ClassVar[str] = "shortest path (grid)"

    def __post_init__(self) -> None:
        whole("rows", self.rows, 1)
        whole("columns", self.columns, 1)
        if self.neighbors not in (4, 8) or not self.floor > 0:
            raise OptionError("a grid path has 4 or 8 neighbors and a positive floor", got=f"{self.neighbors}, {self.floor}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""
        return (self.rows, self.columns)

    @property
    def _offsets(self) -> list[tuple[int, int]]:
        near = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
        return [(a, b) for a, b in near if self.neighbors == 8 or a == 0 or b == 0]

    def solve(self, values: np.ndarray) -> np.ndarray:
        """See `NamedOracle.solve`."""
        if kernels.available():
            threads = 1 if values.size < SMALL else min(os.cpu_count() or 1, 8)
            grids = values.reshape(len(values), self.rows, self.columns)
            return kernels.grid_paths(grids, self.neighbors, self.floor, MOST, threads=threads).reshape(values.shape)
        block = max(16, 16_000 // (self.rows * self.columns))  # the arrays of a block stay in the second-level cache
        parts = [self._block(values[i : i + block]) for i in range(0, len(values), block)]
        return np.concatenate(parts) if parts else np.zeros(values.shape)

    def _block(self, values: np.ndarray) -> np.ndarray:
        r, c, count = self.rows, self.columns, len(values)
        weights = np.ascontiguousarray(np.clip(values, self.floor, MOST).T).reshape(r, c, count)
        wide = np.full((r + 2, c + 2, count), np.inf)
        inner = wide[1:-1, 1:-1]
        inner[0, 0] = weights[0, 0]
        row = np.empty((r, c + 2, count))
        near = np.empty((r, c, count))
        before = np.empty_like(near)
        # A sweep by diagonals would be sequential in Python; simultaneous relaxation reaches the far corner after max(r, c) passes
        # (their sum with 4 neighbours), and a few more passes settle paths that turn back.
        least = max(r, c) if self.neighbors == 8 else r + c
        for step in range(r * c + 1):
            check = step >= least and step % 2 == 0
            if check:
                np.copyto(before, inner)
            if self.neighbors == 8:
                np.minimum(wide[:-2], wide[2:], out=row)
                np.minimum(row, wide[1:-1], out=row)
                np.minimum(row[:, :-2], row[:, 2:], out=near)
                np.minimum(near, row[:, 1:-1], out=near)
            else:
                np.minimum(wide[:-2, 1:-1], wide[2:, 1:-1], out=near)
                np.minimum(near, wide[1:-1, :-2], out=near)
                np.minimum(near, wide[1:-1, 2:], out=near)
            near += weights
            np.minimum(inner, near, out=inner)
            if check and np.array_equal(before, inner):
                break
        return self._trace(wide, weights)

    def _trace(self, wide: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Walk back from the far corner to the least distance around, which falls at every step until the walk ends at the start."""
        r, c, count = self.rows, self.columns, wide.shape[2]
        flat = wide.reshape((r + 2) * (c + 2), count)
        out = np.zeros(((r + 2) * (c + 2), count))
        offsets = np.array([a * (c + 2) + b for a, b in self._offsets], dtype=np.intp)[:, None]
        start = c + 3
        at, live = np.full(count, r * (c + 2) + c), np.arange(count)
        for _ in range(r * c):
            out[at, live] = 1.0
            moving = at != start
            if not moving.all():
                at, live = at[moving], live[moving]
                if not len(live):
                    break
            around = at + offsets
            best = flat[around, live].argmin(axis=0)
            at = around[best, np.arange(len(live))]
        for k in live:
            out[:, k] = self._search(flat[:, k], np.pad(weights[:, :, k], 1, constant_values=np.inf).ravel(), offsets.ravel().tolist())
        return np.ascontiguousarray(out.reshape(r + 2, c + 2, count)[1:-1, 1:-1].reshape(r * c, count).T)

    def _search(self, distance: np.ndarray, weights: np.ndarray, offsets: list[int]) -> np.ndarray:
        """A path over steps that attain the distances. Where weights vanish beside the distances, the walk may go in a circle."""
        d, w = distance.tolist(), weights.tolist()
        start, end = self.columns + 3, self.rows * (self.columns + 2) + self.columns
        before, queue = {start: start}, deque([start])
        while end not in before:
            u = queue.popleft()
            for v in (u + k for k in offsets):
                if v not in before and d[v] < np.inf and d[u] + w[v] == d[v]:
                    before[v] = u
                    queue.append(v)
        path, at = np.zeros(len(d)), end
        while True:
            path[at] = 1.0
            if at == start:
                return path
            at = before[at]

    def equalities(self) -> Any:
        """Both corners are on every path."""
        E = np.zeros((2, self.rows * self.columns))
        E[0, 0] = E[1, -1] = 1.0
        return E
