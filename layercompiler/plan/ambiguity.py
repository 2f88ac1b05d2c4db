"""What a singular linear system leaves open: the solution that the outputs read, or the gradient that the parameters get.

A null vector (u, t) of the system is a direction along which the optimality conditions do not change to first order. The solution
is one of many where u reaches an output; the gradient is one of many where the data gradient of (u, t) reaches a parameter. An
inactive epigraph variable, say, does neither. Whether it reaches is judged entry by entry beside random vectors of the same size in
scaled coordinates, so that no unit matters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from layercompiler.derivatives.data_gradient import Adjoint
from layercompiler.derivatives.residual_map import Point
from layercompiler.plan.evaluation import Bound
from layercompiler.programs.cone import ConeProgram

_OFF = 1e-3  # of the largest entry of a point
_REACHES = 1e-4  # null vectors are known to about the regularisation over the next singular value


def ambiguity(program: ConeProgram, bound: Bound, point: Point, linear: Any) -> tuple[np.ndarray, np.ndarray]:
    """(gradient ambiguous, solution not unique), (B,) bool each; meaningful for instances whose system is singular."""
    rng = np.random.default_rng(1)
    count = len(point.x)
    r_x, h = (np.repeat(rng.standard_normal((1, a.shape[1])), count, axis=0) for a in (point.x, point.v))
    with np.errstate(all="ignore"):
        # The regularised system amplifies the null space by one over the regularisation: one solve finds a generic null vector.
        u, t, _ = linear.solve(r_x, h, refine=0)
        found = _effects(program, bound, point.x, point.y, u, t)
        usual = [_effects(program, bound, *_somewhere(rng, point), *_anywhere(rng, point)) for _ in range(2)]
        # A null vector that could not be found may reach everything.
        reaches = [(~(f <= _REACHES * np.maximum(a, b))).any(axis=1) for f, a, b in zip(found, *usual, strict=True)]
    many, ambiguous = np.zeros(count, bool), np.zeros(count, bool)
    for k, reach in enumerate(reaches):
        if k < len(program.outputs) and program.outputs[k].source == "primal":
            many |= reach
        ambiguous |= reach
    return ambiguous, many


def _anywhere(rng: np.random.Generator, point: Point) -> list[np.ndarray]:
    """(u, t) without small entries."""
    shapes = [(1, a.shape[1]) for a in (point.x, point.v)]
    return [np.repeat(rng.uniform(0.5, 1.5, s) * rng.choice([-1.0, 1.0], s), len(point.x), axis=0) for s in shapes]


def _somewhere(rng: np.random.Generator, point: Point) -> list[np.ndarray]:
    """(x, y) a little off, so that what is zero but for rounding counts as zero."""
    return [
        a + _OFF * np.abs(a).max(axis=1, initial=1.0, keepdims=True) * b
        for a, b in zip((point.x, point.y), _anywhere(rng, point), strict=True)
    ]


def _effects(program: ConeProgram, bound: Bound, x: np.ndarray, y: np.ndarray, u: np.ndarray, t: np.ndarray) -> list[np.ndarray]:
    """Changes (B, k) that (u, t), brought to unit size, makes in the entries of each output, and of the gradient of P, q, d, A and b."""
    size = np.maximum(_largest(u), _largest(t))[:, None]
    u, t = u / size, t / size
    if bound.scaling is not None:
        u, t, x, y = u * bound.scaling.x, t * bound.scaling.y, x * bound.scaling.x, y * bound.scaling.y
    zero_x, zero_y = np.zeros((len(u), program.structure.n)), np.zeros((len(u), program.structure.m))
    u, t = bound.reduction.expand_step(u, t, zero_x, zero_y)
    x, y = bound.reduction.expand(x, y)
    moves = {"primal": u, "dual": t}
    out = [np.abs(o.pick(moves[o.source])) if o.source in moves else np.zeros((len(u), 0)) for o in program.outputs]
    for m, gradient in zip(program.maps, Adjoint(x, y, u, t, None).gradients(program.structure), strict=True):
        rows = np.flatnonzero(m.parametric)
        out.append(np.abs(gradient()[:, rows]) if len(rows) else np.zeros((len(u), 0)))
    return out


def _largest(a: np.ndarray) -> np.ndarray:
    return np.abs(a).max(axis=1, initial=0.0)
