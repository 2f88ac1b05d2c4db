"""Loops over a batch that go on with the instances that have not converged, where a framework runs eagerly.

As soon as at most half of the instances of a loop are active, they are gathered and the others rest. A user's function may take arguments
that belong to instances and arguments that all share; which is which is guessed by their shapes, and the guess counts only if the
function then gives the same numbers as before, at a point beside the present one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from layercompiler.arrays import Arrays

LEAST = 32  # of a smaller batch, steps cost the same as those of its half


class Instances:
    """v -> F(v, *theta) for v (batch, event...), of which some instances can go alone.

    Args:
        F: A function of arrays whose i-th row of the value depends on the i-th row of v only.
        theta: What it takes last.
        between: An example of what it takes between v and theta.
    """

    def __init__(self, F: Callable[..., Any], theta: tuple[Any, ...], between: tuple[Any, ...] = ()) -> None:
        self.F, self.theta, self.between = F, theta, between

    def __call__(self, *v: Any) -> Any:
        """The value for all instances."""
        return self.F(*v, *self.theta)

    def only(self, xp: Arrays, y: Any, index: Any) -> Instances | None:
        """Of some instances, by their indices; None where that is not the same function."""
        count = int(y.shape[0])
        theta = tuple(t[index] if len(t.shape) and int(t.shape[0]) == count else t for t in self.theta)
        some = Instances(self.F, theta, self.between)
        beside = y + 1e-3 * (1 + xp.abs(y)) * xp.new(np.random.default_rng(0).standard_normal(tuple(y.shape)), y)
        want = xp.numpy(self(beside, *self.between)[index])
        try:
            found = xp.numpy(some(beside[index], *self.between))
        except Exception:  # arrays of the whole batch that are no arguments, most likely
            return None
        close = 1e3 * float(np.finfo(want.dtype).eps) * float(np.max(np.abs(want), initial=0.0))
        return some if found.shape == want.shape and bool(np.all(np.abs(found - want) <= close)) else None


def loop(
    xp: Arrays, G: Any, active: Callable[..., Any], step: Callable[..., tuple[Any, ...]], state: tuple[Any, ...], batch: int, limit: int
) -> tuple[Any, ...]:
    """Steps while any instance is active: `step(G, k, y, ...)` gives the next (k, y, ...), at most up to k = limit.

    Args:
        xp: Array functions.
        G: The map, or a tuple of maps; `Instances` to let instances rest.
        active: active(k, y, ...): the mask (batch..., 1...).
        step: One step, given the map.
        state: The count, the point, and further arrays with the batch in front.
        batch: Number of batch dimensions.
        limit: Most steps.

    Returns:
        The last state of every instance.
    """
    every = G if isinstance(G, tuple) else (G,)
    eager = xp.name in ("torch", "numpy") and not xp.traced(*state) and all(isinstance(g, Instances) for g in every)
    if not eager or batch != 1 or int(state[1].shape[0]) < 2 * LEAST:
        return xp.while_loop(lambda *s: (s[0] < limit) & xp.any(active(*s)), lambda *s: step(G, *s), state)
    whole: list[Any] | None = None
    index: Any = None
    able = True
    while state[0] < limit:
        going = active(*state)
        left, size = int(xp.sum(xp.astype(going, xp.int64))), int(state[1].shape[0])
        if left == 0:
            break
        if able and 2 * left <= size and size >= 2 * LEAST:
            at = xp.nonzero(xp.reshape(going, (-1,)))[0]
            some = tuple(g.only(xp, state[1], at) for g in every)
            able = None not in some
            if able:
                whole = _placed(xp, whole, index, state)
                index = at if index is None else index[at]
                every, G = some, some if isinstance(G, tuple) else some[0]
                state = (state[0], *(a[at] for a in state[1:]))
        state = step(G, *state)
    return state if whole is None else (state[0], *_placed(xp, whole, index, state)[1:])


def _placed(xp: Arrays, whole: list[Any] | None, index: Any, state: tuple[Any, ...]) -> list[Any]:
    """The arrays of all instances, those at the indices as they are in the state."""
    if whole is None:
        return [state[0], *(xp.asarray(a, copy=True) for a in state[1:])]
    for a, new in zip(whole[1:], state[1:], strict=True):
        a[index] = new
    return whole
