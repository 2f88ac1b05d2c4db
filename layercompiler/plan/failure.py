"""The error that names the instances of a batch that were not solved."""

from __future__ import annotations

import numpy as np

from layercompiler.errors import SolveError
from layercompiler.status import Solution, Status

_WORDS = {
    Status.PRIMAL_INFEASIBLE: "infeasible",
    Status.DUAL_INFEASIBLE: "unbounded",
    Status.ITERATION_LIMIT: "iteration limit",
    Status.TIME_LIMIT: "time limit",
    Status.INACCURATE: "inaccurate",
    Status.NONFINITE_INPUT: "NaN or infinite input",
    Status.NOT_CONVEX: "not convex",
    Status.FAILED: "failed",
}


def failure(status: np.ndarray, batch: tuple[int, ...], solution: Solution | None) -> SolveError:
    """The error that names the failed instances and their statuses."""
    flat = status.reshape(-1)
    bad = np.flatnonzero(flat != Status.SOLVED)
    indices = tuple(tuple(int(j) for j in np.unravel_index(i, batch)) if batch else () for i in bad)
    shown = "; ".join(
        f"{'instance ' + str(index[0] if len(index) == 1 else index) if index else 'the instance'}: {Status(int(flat[i])).message}"
        for index, i in list(zip(indices, bad, strict=True))[:8]
    )
    words = sorted({_WORDS.get(Status(int(flat[i])), "not solved") for i in bad})
    return SolveError(
        f"{len(bad)} of {len(flat)} instances not solved ({', '.join(words)})",
        where=shown + ("; ..." if len(bad) > 8 else ""),
        mend="the exception's `.solution` holds all results; export with on_error='flag' to go on without the failed ones",
        solution=solution,
        indices=indices,
    )
