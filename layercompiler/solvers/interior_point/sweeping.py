"""The dual active-set method for s = q + R z on the orthant, a batch at once: it ends where block pivoting may turn in circles.

Rows become active one after another, the worst one first; one that turns to the wrong side on the way leaves. With I the active rows, a
symmetric tableau is swept along,

    [[-R_II^-1, R_II^-1 R_IJ], [R_JI R_II^-1, R_JJ - R_JI R_II^-1 R_IJ]],

of which a step needs one column to tell how all rows change, and changes by a product of two vectors. Its last column, R's is q, holds -z
of active rows and s of the others for z of the row on its way taken as zero, and changes likewise: how far that z may grow, in all, until
the row has arrived or an active one stands in its way is a ratio of two columns. No step factors a matrix, so that all of them together
cost about as much as two or three passes of block pivoting.

Source: Goldfarb and Idnani 1983 (the steps); Dantzig 1963, van de Panne and Whinston 1964 (the tableau); Goodnight 1979 (sweeps).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from layercompiler.solvers.interior_point.program import put

SIGN = 1e-11  # where the largest of q is one: smaller numbers have no sign
NEVER = 1e300  # z of an active row that never leaves
_STILL = 1e-250  # the rate of such a row
_LEAST = 1e-12  # pivot, where the diagonal of R is one
_FEW = 16  # instances that are not worth collecting


def sweep(xp: Any, R: Any, q: Any, going: Any, every: int = 1) -> tuple[Any, Any, Any]:
    """(active (B, m), sure (B,), steps (B,)): the active rows, and whether all signs are right there.

    Args:
        xp: Array functions.
        R: (B or 1, m, m), with a unit diagonal.
        q: (B, m), with a largest entry of about one.
        going: (B or 1,), the instances to work on; the others are not sure.
        every: Whether all are done is asked only then.
    """
    going = xp.broadcast_to(going[:, None], q[:, :1].shape)
    wide = R if R.shape[0] == len(q) else xp.broadcast_to(R, (len(q), *R.shape[1:]))
    state = begin(xp, xp.concat([wide, q[:, :, None]], axis=2), xp.ones_like(q) > 0, going)
    if xp.name in ("jax", "tensorflow"):
        _, active, sure, count = run(xp, state, every)
        return active, (going & sure)[:, 0], count
    whole, rows, limit = None, xp.arange(len(q)), _limit(state)
    while True:
        few = len(rows) // 2 if len(rows) > _FEW else 0
        state, turns = _steps(xp)(state, limit, few, every)
        _, idle, _, _, more, _ = state
        found = (~idle, *(a[:, 0] for a in _facts(state)))
        whole = found if whole is None else tuple(put(xp, a, rows, b) for a, b in zip(whole, found, strict=True))
        limit -= turns
        if not few or limit <= 0 or not bool(xp.any(more)):
            active, sure, count = whole
            return active, going[:, 0] & sure, count
        first = xp.argsort(xp.astype(~more[:, 0], xp.int8))[:few]  # sizes that do not depend on numbers
        rows, state = rows[first], tuple(a[first] for a in state)


def begin(xp: Any, tableau: Any, idle: Any, going: Any) -> tuple[Any, ...]:
    """The state in which steps begin, see `_step`; with everything at rest where it is not `going` (B, 1)."""
    tableau = xp.where(going[:, :, None], tableau, xp.zeros_like(tableau))
    worst, first = _choose(xp, tableau, idle)
    return tableau, idle, first, worst, worst < -SIGN, xp.astype(xp.zeros_like(worst), xp.int32)


def run(xp: Any, state: tuple[Any, ...], every: int = 1) -> tuple[Any, Any, Any, Any]:
    """(tableau, active rows, whether all signs are right (B, 1), steps (B,)) after the last step.

    Two is added to the diagonal of the tableau at active rows.
    """
    limit = _limit(state)
    if xp.name in ("jax", "tensorflow"):
        *state, _ = xp.while_loop(  # type: ignore[assignment]
            lambda *now: (now[-1] < limit) & xp.any(now[4]),
            lambda *now: (*_step(xp, *now[:-1]), now[-1] + 1),
            (*state, xp.zeros_like(state[-1][0, 0])),
        )
    else:
        state, _ = _steps(xp)(state, limit, 0, every)
    sure, count = _facts(state)
    return state[0], ~state[1], sure, count[:, 0]


def _limit(state: tuple[Any, ...]) -> int:
    return 4 * state[1].shape[1] + 8


def _facts(state: Any) -> tuple[Any, Any]:
    """(whether all signs are right (B, 1), steps (B, 1))."""
    _, _, _, worst, going, count = state
    return (worst >= -SIGN) & ~going, count


@cache
def _steps(xp: Any) -> Any:
    """`_step` in a loop, see `Arrays.repeated`."""
    return xp.repeated(lambda *held: _step(xp, *held), 0, 4)


def _choose(xp: Any, A: Any, idle: Any) -> tuple[Any, Any]:
    """(how wrong its sign is, the row that is to become active)."""
    val = A[:, :, -1]
    return xp.smallest(xp.where(idle, val, xp.zeros_like(val)))


def _step(xp: Any, A: Any, idle: Any, k: Any, worst: Any, going: Any, count: Any) -> tuple[Any, ...]:
    """Row k becomes active, or what stands in its way leaves.

    Args:
        xp: Array functions.
        A: The tableau, (B, m, m + 1).
        idle: (B, m), rows that are not active.
        k: (B, 1), the row to become active, as are all that follow.
        worst: How wrong its sign is.
        going: Where there is a step to take.
        count: Steps.
    """
    m = A.shape[1]
    col = _line(xp, A, k)[:, :m]
    rates = (_LEAST - col) / xp.clip(A[:, :, m], None, -1e-14)
    fastest, r = xp.largest(xp.where(xp.placed(idle, k, k < 0), xp.zeros_like(rates), rates))  # only active rows and k end a step
    going, leaves = going & (fastest > _STILL), r != k  # else no z is feasible
    line = _line(xp, A, r)
    corner = xp.gather(line, r, 1)
    line, zero = xp.placed(line, r, corner - 1.0), xp.zeros_like(corner)
    scaled = line[:, :m] / (xp.where(going, xp.where(leaves, zero + 2.0, zero), zero + xp.inf) - corner)
    A = xp.axpy(scaled[:, :, None], line[:, None, :], A)
    idle = xp.where(going, xp.placed(idle, r, leaves), idle)
    worst, first = _choose(xp, A, idle)
    return A, idle, xp.where(leaves, k, first), worst, going & (leaves | (worst < -SIGN)), count + xp.astype(going, count.dtype)


def _line(xp: Any, A: Any, index: Any) -> Any:
    """Row index (B, 1) of A."""
    return xp.gather(A, xp.broadcast_to(index[:, :, None], (len(index), 1, A.shape[2])), 1)[:, 0]
