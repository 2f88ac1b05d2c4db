"""Row orders of engines that differ from ours."""

from __future__ import annotations

import numpy as np

from layercompiler.programs.cone import Structure


def upper_order(structure: Structure) -> np.ndarray:
    """Our row for each row of an engine that stacks PSD blocks as column-major UPPER triangles."""
    order = []
    at = 0
    for cone, count in structure.cones.blocks:
        local = np.arange(cone.dim)
        if cone.name == "psd":
            cols, rows = np.triu_indices(cone.order)  # ours: entries (row >= col) by column
            local = np.lexsort((cols, rows))
        order.append((at + np.arange(count)[:, None] * cone.dim + local).ravel())
        at += count * cone.dim
    return np.concatenate(order).astype(np.intp) if order else np.zeros(0, np.intp)
