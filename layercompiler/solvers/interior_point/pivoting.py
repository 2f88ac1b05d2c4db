"""Block principal pivoting: the active rows of s = q + R z on the orthant, from factors of the active rows alone.

A pass solves at the active rows, z_I = -R_II^-1 q_I and s = q + R z, and moves every row of the wrong sign to the other side. A handful of
passes from {q < 0} does, where an interior point needs a dozen factorizations of all of R. Where active rows depend on each other, a
shifted R tells which of them to leave. Where the number of wrong signs does not fall for a while, rows are moved in circles: what does not
end in right signs is left to methods that do.

Source: Judice and Pires 1994.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from layercompiler.solvers.interior_point.program import cholesky_solve, size_for, times

_PASSES = 20
_TRIES = 2  # passes without fewer wrong signs, before it is given up
_SHIFT = 1e-4  # of R, whose diagonal is one, after a pass without a factor
_FAR = 1e30  # on the diagonal
_SIGN = 1e-11  # where the largest of q is one: smaller numbers have no sign
_SHARE = 0.7  # of all rows: where fewer are active, a pass collects them
_FEW = 16  # rows that are not worth collecting


def pivot(xp: Any, R: Any, q: Any, active: Any, going: Any) -> tuple[Any, Any, Any]:
    """(active (B, m), sure (B,), passes (B,)): where each row is active, and whether the signs there are right.

    Instances that are done leave the batch, and active rows are collected.

    Args:
        xp: Array functions.
        R: (B or 1, m, m), with a unit diagonal.
        q: (B, m), with a largest entry of about one.
        active: (B, m), where to begin.
        going: (B or 1,), the instances to work on; the others are not sure.
    """
    act, *_, age, _, sure = _collecting(xp, R, q, _start(xp, q, active, going))
    return act > 0, sure[:, 0], xp.astype(age[:, 0], xp.int32)


def pivot_all(xp: Any, R: Any, q: Any, active: Any, going: Any, every: int) -> tuple[Any, Any, Any, Any]:
    """`pivot` in sizes that do not depend on numbers, and the factor (B, m, m) of R at the active rows of sure instances.

    Whether all are done is asked before every `every`-th pass only: on a device a question costs a synchronization.
    """
    L = xp.broadcast_to(xp.zeros_like(R[:, :1]), (len(q), *R.shape[1:])) + 0.0 * q[:, :, None]
    state = (*_start(xp, q, active, going), L)
    if xp.name in ("jax", "tensorflow"):

        def step(*now: Any) -> tuple[Any, ...]:
            return *_pass(xp, R, q, *now[:-1]), now[-1] + 1

        turn = xp.astype(xp.zeros_like(q[0, 0]), xp.int32)
        *end, _ = xp.while_loop(lambda *now: (now[-1] < _PASSES) & xp.any(now[5]), step, (*state, turn))
    else:
        end, _ = _passes(xp)((R, q, *state), _PASSES, 0, every)
    act, *_, age, _, sure, L = end
    return act > 0, sure[:, 0], xp.astype(age[:, 0], xp.int32), L


def _start(xp: Any, q: Any, active: Any, going: Any) -> tuple[Any, ...]:
    """(active rows, fewest wrong signs, passes before it is given up, shift, passes made, whether it goes on, whether sure)."""
    one = xp.ones_like(q[:, :1])
    going = xp.broadcast_to(going[:, None], one.shape)
    return xp.astype(active, q.dtype), one * (q.shape[1] + 1.0), one * _TRIES, one * 0.0, one * 0.0, going, going & ~going


def active_rows(xp: Any, R: Any, act: Any, shift: Any = 0.0) -> Any:
    """R (plus `shift` on the diagonal) at the active rows, where act (B, m) is one; the others are so far off that they do not matter."""
    return xp.add_diagonal(R, shift + _FAR * (1.0 - act))


def collect(xp: Any, R: Any, act: Any) -> tuple[Any, Any, Any]:
    """(order, L, ok): the factor of R at the active rows of each instance, which come first in its order.

    Args:
        xp: Array functions.
        R: (B or 1, m, m).
        act: (B, m), one where a row is active.

    Returns:
        order (B, m), or (B, 0) where there are so few rows that all stay as they are; L (B, a, a) for a about the largest number of active
        rows; what belongs to others does not matter where their right-hand side is zero.
    """
    most = _size(act.shape[1], int(xp.max(xp.sum(act, axis=1))), 1.0)
    return _collected(xp, most)(R, act, act.shape[1] * xp.arange(len(act))[:, None])


def _size(m: int, count: int, share: float) -> int:
    """Rows to be collected for `count` active ones, zero where it does not pay; few sizes, since what is recorded is recorded by size."""
    most = min(m, -(-max(count, 1) // 8) * 8)
    return 0 if m <= _FEW or most > share * m else most


@cache
def _collected(xp: Any, most: int) -> Any:
    def call(R: Any, act: Any, begin: Any) -> tuple[Any, ...]:
        order = xp.argsort(-act, axis=1) if most else xp.astype(act[:, :0], xp.int64)
        return order, *_collect(xp, order[:, :most], R, act, begin, 0.0)[:2]

    return xp.trace(call) if xp.name == "torch" else call


def _collect(xp: Any, first: Any, R: Any, act: Any, begin: Any, shift: Any) -> tuple[Any, ...]:
    """(L, ok, on, rows): the rows `first` (b, a) of instances, all where a is zero, and one where they are active.

    Those of an instance begin at row `begin` (b, 1) of all that R holds.
    """
    (b, m), most = act.shape, first.shape[1]
    if not most:
        rows = R if R.shape[0] in (1, b) else R[begin[:, 0] // m]
        return (*xp.cholesky(active_rows(xp, rows, act, shift)), act, rows)
    on = xp.gather(act, first, 1)
    at = first if R.shape[0] == 1 else first + begin
    rows = xp.take(R.reshape(-1, m), at.reshape(-1), axis=0).reshape(b, most, m)
    inner = xp.gather(rows, xp.broadcast_to(first[:, None, :], (b, most, most)), 2)
    return (*xp.cholesky(active_rows(xp, inner, on, shift)), on, rows)


@cache
def _pass_on(xp: Any, most: int) -> Any:
    """A pass that collects `most` rows, recorded where Python would cost as much as the numbers; see `_collect` for `begin`.

    Returns:
        The state, and (2,): how many instances go on, and the largest number of active rows in one of them.
    """

    def call(R: Any, q: Any, begin: Any, *state: Any) -> tuple[Any, ...]:
        act = state[0]
        order = xp.leading(act, most)
        L, ok, on, rows = _collect(xp, order, R, act, begin, state[3])
        if most:
            w = on * cholesky_solve(xp, L, -on * xp.gather(q, order, 1))
            z, s = xp.spread(w, order, act.shape[1]), q + xp.matmul(w[:, None, :], rows)[:, 0]
        else:
            z = act * cholesky_solve(xp, L, -act * q)
            s = q + times(xp, rows, z)
        new = _turn(xp, state, z, s, ok[:, None])
        going = xp.astype(new[5], q.dtype)
        return *new, xp.stack([xp.sum(going), xp.max(going * xp.sum(new[0], axis=1, keepdims=True))])

    return xp.trace(call) if xp.name == "torch" else call


def _collecting(xp: Any, R: Any, q: Any, begin: tuple[Any, ...]) -> tuple[Any, ...]:
    """Passes on ever smaller parts of the batch, as instances are done, and until most of those that are not have been given up."""
    m, whole, index, state = q.shape[1], list(begin), xp.arange(len(q)), list(begin)
    most = int(xp.max(xp.sum(state[0], axis=1)))
    for turn in range(_PASSES):
        *state, facts = _pass_on(xp, _size(m, most, _SHARE))(R, q, m * index[:, None], *state)
        left, most = (int(f) for f in facts.tolist())
        size = size_for(left)
        if size >= len(q) and turn + 1 < _PASSES:
            continue
        if len(q) == len(whole[0]):
            whole = state
        else:
            for k in (0, 4, 6):  # active rows, passes, whether sure
                whole[k][index] = state[k]
        unsure = int(xp.sum(xp.astype(~whole[6], xp.int32)))
        if 3 * left <= unsure or turn + 1 == _PASSES:
            break
        rest = xp.argsort(xp.astype(~state[5][:, 0], xp.int8))[:size]
        q, index, state = q[rest], index[rest], [a[rest] for a in state]
    return tuple(whole)


@cache
def _passes(xp: Any) -> Any:
    """`_pass` in a loop, see `Arrays.repeated`."""
    return xp.repeated(lambda *held: _pass(xp, *held), 2, 7)


def _pass(xp: Any, R: Any, q: Any, *held: Any) -> tuple[Any, ...]:
    """A pass on all rows; an instance that is done finds what it has again, its factor (the last of the state) too."""
    state = held[:-1]
    act, shift = state[0], state[3]
    L, ok = xp.cholesky(active_rows(xp, R, act, shift))
    z = act * cholesky_solve(xp, L, -act * q)
    return *_turn(xp, state, z, q + times(xp, R, z), ok[:, None]), L


def _turn(xp: Any, state: Any, z: Any, s: Any, ok: Any) -> tuple[Any, ...]:
    """The state after a pass that found z and s at the active rows, from a factor that exists where it is `ok` (B, 1)."""
    act, fewest, left, shift, age, going, sure = state
    one = xp.ones_like(left)
    off = xp.astype(xp.minimum(z, s) < -_SIGN, act.dtype)  # where z is free s vanishes, and the other way round
    wrong = xp.sum(off, axis=1, keepdims=True)
    fewer = wrong < fewest
    left = xp.where(fewer, _TRIES * one, left - 1.0)
    known = going & ok
    act = xp.where((off > 0) & known, 1.0 - act, act)
    right = known & (wrong + shift == 0)
    shift = xp.where(ok, 0.0 * one, _SHIFT * one)
    age = age + xp.astype(going, age.dtype)
    return act, xp.minimum(fewest, wrong), left, shift, age, going & ~right & (left >= 0), sure | right
