"""A loop that every framework and transform can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def iterate(
    xp: Any, condition: Callable[..., Any], body: Callable[..., Any], state: tuple[Any, ...], limit: int, blind: int = 30
) -> tuple[Any, ...]:
    """Runs body while condition(*state) holds, a scalar, at most `limit` times.

    The state are arrays held constant. Inside torch.func.vmap no condition can be read, and `blind` steps are taken: the body must do no
    harm
    beyond convergence.
    """
    if xp.name == "torch":
        try:
            bool(condition(*state))
        except RuntimeError:
            for _ in range(min(limit, blind)):
                state = tuple(body(*state))
            return state
    count = xp.new(0)
    out = xp.while_loop(
        lambda i, *s: (i < limit) & condition(*s),
        lambda i, *s: (i + 1, *body(*s)),
        (count, *state),
    )
    return tuple(xp.stop_gradient(v) for v in out[1:])
