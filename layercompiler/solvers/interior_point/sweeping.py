"""The dual active-set method for s = q + R z on the orthant, a batch at once: it ends where block pivoting may turn in circles.

Rows become active one after another, the worst one first; one that turns to the wrong side on the way leaves. With I the active rows, a
symmetric tableau is swept along,

    [[-R_II^-1, R_II^-1 R_IJ], [R_JI R_II^-1, R_JJ - R_JI R_II^-1 R_IJ]],

of which a step needs one column to tell how all rows change, and changes by a product of two vectors. No step factors a matrix, so that
all of them together cost about as much as two or three passes of block pivoting.

Source: Goldfarb and Idnani 1983 (the steps); Dantzig 1963, van de Panne and Whinston 1964 (the tableau); Goodnight 1979 (sweeps).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SIGN = 1e-11  # where the largest of q is one: smaller numbers have no sign
_LEAST = 1e-12  # pivot, where the diagonal of R is one
_ENTERS = 1e30  # weight that keeps a row that is on its way ahead of all others


def sweep(xp: Any, R: Any, q: Any, going: Any, every: int = 1) -> tuple[Any, Any, Any, Any]:
    """(active (B, m), sure (B,), steps (B,), tableau (B, m, m)): the active rows, and whether all signs are right there.

    Args:
        xp: Array functions.
        R: (B or 1, m, m), with a unit diagonal.
        q: (B, m), with a largest entry of about one.
        going: (B or 1,), the instances to work on; the others are not sure.
        every: Whether all are done is asked only then.

    Returns:
        See above; two is added to the diagonal of the tableau at active rows.
    """
    going = xp.broadcast_to(going[:, None], q[:, :1].shape)
    val = xp.where(going, q, xp.zeros_like(q))
    side, zero = xp.ones_like(q), xp.zeros_like(q)
    R = xp.where(going[:, :, None], R, xp.zeros_like(q)[:, :, None])
    first, worst = _choose(xp, side, val, zero)
    state = (R, val, zero, side, first, worst, worst < -SIGN, xp.astype(zero[:, :1], xp.int32))
    limit = 4 * q.shape[1] + 8
    if xp.name in ("jax", "tensorflow"):
        end = xp.while_loop(
            lambda *now: (now[-1] < limit) & xp.any(now[6]),
            lambda *now: (*_step(xp, *now[:-1]), now[-1] + 1),
            (*state, xp.zeros_like(state[-1][0, 0])),
        )
    else:
        end, _ = _steps(xp)(state, limit, 0, every)
    tableau, _, _, side, _, worst, _, count = end[:8]
    return side < 0, (going & (worst >= -SIGN))[:, 0], count[:, 0], tableau


@cache
def _steps(xp: Any) -> Any:
    """`_step` in a loop, see `Arrays.repeated`."""
    return xp.repeated(lambda *held: _step(xp, *held), 0, 6)


def _choose(xp: Any, side: Any, val: Any, entering: Any) -> tuple[Any, Any]:
    """The row that is to become active, and how wrong its sign is."""
    score = xp.where(side > 0, val, xp.zeros_like(val)) - _ENTERS * entering
    return xp.argmin(score, axis=1, keepdims=True), xp.min(score, axis=1, keepdims=True)


def _step(xp: Any, A: Any, val: Any, entering: Any, side: Any, k: Any, worst: Any, going: Any, count: Any) -> tuple[Any, ...]:
    """Row k becomes active, or what stands in its way leaves.

    Args:
        xp: Array functions.
        A: The tableau.
        val: z of active rows, s of the others.
        entering: z of the row that is on its way to become active.
        side: -1 for active rows, else 1.
        k: The row to become active.
        worst: How wrong its sign is.
        going: Where there is a step to take.
        count: Steps.
    """
    rows = xp.new(np.arange(val.shape[1]))[None]
    here, col, zero = rows == k, _line(xp, A, k), xp.zeros_like(val)
    rate = xp.where((here | (side < 0)) & (col > _LEAST), col / xp.clip(xp.abs(val), 1e-14, None), zero)
    fastest, r = xp.max(rate, axis=1, keepdims=True), xp.argmax(rate, axis=1, keepdims=True)
    going = going & (fastest > 0)  # else no z is feasible
    length = xp.where(going, 1.0 / xp.clip(fastest, 1e-300, None), xp.zeros_like(worst))
    there = (rows == r) & going
    entering = xp.where(here, entering + length, entering)
    val = xp.where(there, entering, val + length * (side * col))
    entering = xp.where(there, zero, entering)
    line, of = _line(xp, A, r), xp.gather(side, r, 1)
    pivot = xp.gather(line, r, 1) + of - 1.0
    line = xp.where(there, pivot - of, line)
    scaled = line / xp.where(going, -pivot, xp.full_like(pivot, xp.inf))
    A = xp.axpy(scaled[:, :, None], line[:, None, :], A)
    side = xp.where(there, -side, side)
    k, worst = _choose(xp, side, val, entering)
    return A, val, entering, side, k, worst, going & (worst < -SIGN), count + xp.astype(going, count.dtype)


def _line(xp: Any, A: Any, index: Any) -> Any:
    """Row index (B, 1) of A (B, m, m)."""
    return xp.gather(A, xp.broadcast_to(index[:, :, None], (len(index), 1, A.shape[2])), 1)[:, 0]
