"""A loop that every framework and transform can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def iterate(xp: Any, condition: Callable[..., Any], body: Callable[..., Any], state: tuple[Any, ...], limit: int) -> tuple[Any, ...]:
    """Runs body while condition(*state) holds, a scalar, at most `limit` times.

    The state are arrays held constant. Where torch traces (func.vmap, compile), no condition can be read and all `limit` steps are taken: the
    body must do no harm beyond convergence.
    """
    if xp.name == "torch" and xp.traced(*state):
        for _ in range(limit):
            state = tuple(body(*state))
        return state
    count = xp.new(0)
    out = xp.while_loop(
        lambda i, *s: (i < limit) & condition(*s),
        lambda i, *s: (i + 1, *body(*s)),
        (count, *state),
    )
    return tuple(xp.stop_gradient(v) for v in out[1:])
