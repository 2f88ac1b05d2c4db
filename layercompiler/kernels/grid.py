"""Shortest paths on many grids with positive node weights, one grid per SIMD lane."""

from __future__ import annotations

import numpy as np

from layercompiler.errors import ShapeError
from layercompiler.kernels import library


def grid_paths(weights: np.ndarray, neighbors: int, least: float, most: float, *, threads: int = 1, isa: str | None = None) -> np.ndarray:
    """Indicators of the paths of least total weight from the first to the last cell.

    Args:
        weights: (N, rows, columns), without NaN.
        neighbors: 4 or 8.
        least: Positive; smaller weights count as it.
        most: Larger weights count as it; the sum of all must not overflow.
        threads: Threads that share the packs; the result does not depend on it.
        isa: Instruction set to use; the best one of the machine by default.

    Returns:
        (N, rows, columns) of zeros and ones.

    Raises:
        ShapeError: The weights have another shape, or are NaN.

    Cost: 16 (rows + 2)(columns + 2) bytes per lane; a few raster sweeps over the grid, more where paths turn often.
    """
    weights = np.ascontiguousarray(weights, dtype=float)
    if weights.ndim != 3 or 0 in weights.shape[1:] or np.isnan(weights).any():
        raise ShapeError("the weights are malformed", expected="(N, rows, columns) without NaN", got=str(weights.shape))
    paths = np.empty_like(weights)
    at, count = library.address, len(weights)
    isa = library.instruction_set(isa)
    if library.require().lc_grid_paths(
        count, *weights.shape[1:], neighbors, least, most, at(weights), at(paths), isa.encode(), max(1, threads)
    ):
        raise MemoryError(library.reason())
    return paths
