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

_NULL = 1e-6  # what the matrix makes of a null vector of size one
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
        usual = [_effects(program, bound, *_somewhere(rng, point), *_anywhere(rng, point)) for _ in range(2)]
        # A null vector that could not be found may reach everything.
        effects = [_effects(program, bound, point.x, point.y, *part) for part in _parts(bound, point, u, t)]
        reaches = [np.zeros(count, bool) for _ in usual[0]]
        for found in effects:
            for reach, f, a, b in zip(reaches, found, *usual, strict=True):
                reach |= (~(f <= _REACHES * np.maximum(a, b))).any(axis=1)
    many, ambiguous = np.zeros(count, bool), np.zeros(count, bool)
    for k, reach in enumerate(reaches):
        if k < len(program.outputs) and program.outputs[k].source == "primal":
            many |= reach
        ambiguous |= reach
    return ambiguous, many


def _parts(bound: Bound, point: Point, u: np.ndarray, t: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(u, t), and (u, 0) and (0, t) where they are null vectors by themselves: the larger of both hides the other."""
    products, D = bound.products, point.projection.apply
    a, b = (c / np.where(_largest(c) > 0, _largest(c), 1.0)[:, None] for c in (u, t))
    of_a = np.maximum(_largest(products.P(a)), _largest(D(products.A(a))))
    of_b = np.maximum(_largest(products.AT(b)), _largest(b - D(b)))
    return [(u, t), (a * (of_a <= _NULL)[:, None], np.zeros_like(t)), (np.zeros_like(u), b * (of_b <= _NULL)[:, None])]


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
    u, t = (a / np.where(size > 0, size, 1.0) for a in (u, t))
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
