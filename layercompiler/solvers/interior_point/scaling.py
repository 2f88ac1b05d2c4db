"""Equilibration: rows and columns of the data to comparable sizes, cones kept (source: Ruiz 2001; O'Donoghue et al. 2016, section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from layercompiler.solvers.interior_point.program import Program

_PASSES = 6
_LEAST, _MOST = 1e-5, 1e5


@dataclass(frozen=True)
class Equilibrated:
    """A program in other units: x = column x', y = cost row_A y', z = cost row_G z', s = s' / row_G.

    Attributes:
        program: The numbers in these units.
        column: (B or 1, n); `row_A` (., k), `row_G` (., m), `cost` (B, 1).
        row_A: See `column`.
        row_G: See `column`.
        cost: See `column`.
    """

    program: Program
    column: Any
    row_A: Any
    row_G: Any
    cost: Any

    @classmethod
    def of(cls, given: Program) -> Equilibrated:
        """Scale by the roots of the largest entries, a few times."""
        xp, cone = given.xp, given.cone
        Q, A, G = given.Q, given.A, given.G
        lead = xp.zeros_like(Q[:, :, 0]) + (xp.sum(A, axis=(1, 2)) * 0.0 + xp.sum(G, axis=(1, 2)) * 0.0)[:, None]
        column, row_A, row_G = 1.0 + lead, 1.0 + lead[:, :1] + 0.0 * A[:, :, 0], 1.0 + lead[:, :1] + 0.0 * G[:, :, 0]

        def step(Q: Any, A: Any, G: Any, column: Any, row_A: Any, row_G: Any, turn: Any) -> tuple[Any, ...]:
            down = xp.maximum(_columns(xp, Q), xp.maximum(_columns(xp, A), _columns(xp, G)))
            linear, parts = cone.split(_rows(xp, G))
            across_G = cone.join(xp, linear, [xp.max(p, axis=2, keepdims=True) + 0.0 * p for p in parts])
            c, a, g = _root(xp, down), _root(xp, _rows(xp, A)), _root(xp, across_G)
            Q = Q * c[:, :, None] * c[:, None, :]
            A, G = A * a[:, :, None] * c[:, None, :], G * g[:, :, None] * c[:, None, :]
            return Q, A, G, column * c, row_A * a, row_G * g, turn + 1

        turn = xp.astype(xp.zeros_like(lead[0, 0]), xp.int32) if xp.name in ("jax", "tensorflow") else 0
        tall = lead[:, :, None]
        state = (Q + tall, A + tall[:, :1], G + tall[:, :1], column, row_A, row_G, turn)
        Q, A, G, column, row_A, row_G, _ = xp.while_loop(lambda *held: held[-1] < _PASSES, step, state)
        p = given.p * column
        cost = xp.maximum(xp.max(xp.abs(p), axis=1), xp.max(xp.abs(Q), axis=(1, 2)))[:, None]
        cost = xp.where(cost > 1e-12, xp.clip(cost, None, 1e12), xp.ones_like(cost))
        scaled = Program(xp, cone, Q / cost[:, :, None], p / cost, A, row_A * given.b, G, row_G * given.h)
        return cls(scaled, column, row_A, row_G, cost)


def _columns(xp: Any, M: Any) -> Any:
    return xp.max(xp.abs(M), axis=1) if M.shape[1] else 0.0 * xp.sum(M, axis=1)


def _rows(xp: Any, M: Any) -> Any:
    return xp.max(xp.abs(M), axis=2)


def _root(xp: Any, size: Any) -> Any:
    """One over the root; what is zero stays as it is."""
    return xp.where(size > 1e-14, 1.0 / xp.sqrt(xp.clip(size, _LEAST, _MOST)), xp.ones_like(size))
