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

SIGN = 1e-11  # where the largest of q is one: smaller numbers have no sign
_LEAST = 1e-12  # pivot, where the diagonal of R is one


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
    tableau, side, sure, count = run(xp, begin(xp, R, q, xp.ones_like(q), going), every)
    return side < 0, (going & sure)[:, 0], count, tableau


def begin(xp: Any, tableau: Any, val: Any, side: Any, going: Any) -> tuple[Any, ...]:
    """The state in which steps begin, see `_step`; with everything at rest where it is not `going` (B, 1)."""
    zero = xp.zeros_like(val)
    val, tableau = xp.where(going, val, zero), xp.where(going[:, :, None], tableau, zero[:, :, None])
    worst, first = _choose(xp, side, val)
    return tableau, val, zero[:, :1], side, first, worst, worst < -SIGN, xp.astype(zero[:, :1], xp.int32)


def run(xp: Any, state: tuple[Any, ...], every: int = 1) -> tuple[Any, Any, Any, Any]:
    """(tableau, side, whether all signs are right (B, 1), steps (B,)) after the last step."""
    limit = 4 * state[1].shape[1] + 8
    if xp.name in ("jax", "tensorflow"):
        state = xp.while_loop(
            lambda *now: (now[-1] < limit) & xp.any(now[6]),
            lambda *now: (*_step(xp, *now[:-1]), now[-1] + 1),
            (*state, xp.zeros_like(state[-1][0, 0])),
        )
    else:
        state, _ = _steps(xp)(state, limit, 0, every)
    tableau, _, _, side, _, worst, _, count = state[:8]
    return tableau, side, worst >= -SIGN, count[:, 0]


@cache
def _steps(xp: Any) -> Any:
    """`_step` in a loop, see `Arrays.repeated`."""
    return xp.repeated(lambda *held: _step(xp, *held), 0, 6)


def _choose(xp: Any, side: Any, val: Any) -> tuple[Any, Any]:
    """(how wrong its sign is, the row that is to become active)."""
    return xp.smallest(xp.where(side > 0, val, xp.zeros_like(val)))


def _step(xp: Any, A: Any, val: Any, gone: Any, side: Any, k: Any, worst: Any, going: Any, count: Any) -> tuple[Any, ...]:
    """Row k becomes active, or what stands in its way leaves.

    Args:
        xp: Array functions.
        A: The tableau.
        val: z of active rows, s of the others.
        gone: (B, 1), as are all but `side`: z of row k, which is on its way to become active.
        side: -1 for active rows, else 1.
        k: The row to become active.
        worst: How wrong its sign is.
        going: Where there is a step to take.
        count: Steps.
    """
    col = _line(xp, A, k)
    may = xp.placed(xp.clip(side, None, 0.0), k, -1.0)  # only active rows and k end a step
    fastest, r = xp.largest(may * (_LEAST - col) / xp.clip(xp.abs(val), 1e-14, None))
    going = going & (fastest > 0)  # else no z is feasible
    val_r, side_r = xp.gather(val, r, 1), xp.gather(side, r, 1)
    length = xp.where(going, xp.abs(val_r), xp.zeros_like(gone)) / xp.clip(xp.gather(col, r, 1), _LEAST, None)
    gone, zero, blocked = gone + length, xp.zeros_like(gone), going & (r != k)
    val = xp.placed(xp.axpy(length * side, col, val), r, xp.where(going, xp.where(blocked, zero, gone), val_r))
    line = _line(xp, A, r)
    corner = xp.gather(line, r, 1)
    line = xp.placed(line, r, corner - 1.0)
    scaled = line / xp.where(going, 1.0 - corner - side_r, xp.full_like(corner, xp.inf))
    A, side = xp.axpy(scaled[:, :, None], line[:, None, :], A), xp.placed(side, r, xp.where(going, -side_r, side_r))
    worst, first = _choose(xp, side, val)
    worst, k = xp.where(blocked, -xp.ones_like(worst), worst), xp.where(blocked, k, first)
    return A, val, xp.where(blocked, gone, zero), side, k, worst, going & (worst < -SIGN), count + xp.astype(going, count.dtype)


def _line(xp: Any, A: Any, index: Any) -> Any:
    """Row index (B, 1) of A (B, m, m)."""
    return xp.gather(A, xp.broadcast_to(index[:, :, None], (len(index), 1, A.shape[2])), 1)[:, 0]
