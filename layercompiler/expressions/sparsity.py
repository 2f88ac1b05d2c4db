"""Which entries of an expression depend on which entries of its inputs, by propagation through the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from layercompiler.expressions.graph import Graph
from layercompiler.expressions.operation import OPERATIONS, Pattern, boolean


def pattern(graph: Graph, columns: Mapping[int, int], count: int) -> Pattern:
    """The pattern of the Jacobian of all values, one below the other, in flat C order.

    Args:
        graph: The expressions.
        columns: For each input to differentiate by, the column of its first entry; other inputs are held fixed.
        count: Number of columns.

    Returns:
        Sparse array (entries of all values, count) with ones where an entry may be other than zero; canonical CSR. Never too small;
        larger than the true pattern only where values cancel, or behind spectral functions and sorts.
    """
    found: list[Pattern] = []
    for node in graph.nodes:
        if node.operation == "input" and node.options[0] in columns:
            start = columns[node.options[0]]
            ones = np.ones(node.size, np.int8)
            found.append(sp.csr_array((ones, (np.arange(node.size), start + np.arange(node.size))), shape=(node.size, count)))
            continue
        patterns = [found[k] for k in node.arguments]
        if all(p.nnz == 0 for p in patterns):
            found.append(sp.csr_array((node.size, count), dtype=np.int8))
            continue
        arguments = [graph.nodes[k] for k in node.arguments]
        constants = [a.arrays[0] if a.operation == "constant" else None for a in arguments]
        found.append(OPERATIONS[node.operation].pattern(node, [a.shape for a in arguments], patterns, constants))
    if not graph.outputs:
        return sp.csr_array((0, count), dtype=np.int8)
    whole = boolean(sp.vstack([found[k] for k in graph.outputs], format="csr"))
    whole.sort_indices()
    return whole


def color(structure: Any, axis: int = 1) -> np.ndarray:
    """Colors of the columns (axis 1) or rows (axis 0), such that those of one color share no row (column).

    Greedy, largest degree first. One directional derivative per color then gives the whole Jacobian.

    Source: Curtis, Powell, Reid (1974), On the estimation of sparse Jacobian matrices.
    """
    P: Any = sp.csr_array(structure if axis == 1 else structure.T).astype(np.int32)
    meet = sp.csr_array(P.T @ P)
    colors = np.full(P.shape[1], -1)
    for j in np.argsort(-np.diff(meet.indptr), kind="stable"):
        near = colors[meet.indices[meet.indptr[j] : meet.indptr[j + 1]]]
        taken = np.zeros(len(near) + 1, bool)
        taken[near[(near >= 0) & (near < len(taken))]] = True
        colors[j] = int(np.argmin(taken))
    return colors


def columns_of(shapes: Sequence[tuple[int, ...]]) -> tuple[dict[int, int], int]:
    """First columns of inputs 0, 1, ... of these shapes laid one after the other, and the number of columns."""
    sizes = [int(np.prod(s, dtype=int)) for s in shapes]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
    return {k: int(starts[k]) for k in range(len(sizes))}, int(starts[-1])
