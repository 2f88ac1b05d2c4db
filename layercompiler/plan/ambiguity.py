"""What a singular linear system leaves open: the solution that the outputs read, or the gradient that the parameters get.

A null vector (u, t) of the system is a direction along which the optimality conditions do not change to first order. The solution
is one of many where u reaches an output; the gradient is one of many where the data gradient of (u, t) reaches a parameter. An
inactive epigraph variable, say, does neither. Whether it reaches is judged beside a random vector of the same size in scaled
coordinates, so that no unit matters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from layercompiler.derivatives.data_gradient import Adjoint
from layercompiler.derivatives.residual_map import Point
from layercompiler.plan.evaluation import Bound
from layercompiler.programs.cone import ConeProgram

_REACHES = 1e-4  # null vectors are known to about the regularisation over the next singular value


def ambiguity(program: ConeProgram, bound: Bound, point: Point, linear: Any) -> tuple[np.ndarray, np.ndarray]:
    """(gradient ambiguous, solution not unique), (B,) bool each; meaningful for instances whose system is singular."""
    rng = np.random.default_rng(1)
    count = len(point.x)
    r_x, h = (np.repeat(rng.standard_normal((1, a.shape[1])), count, axis=0) for a in (point.x, point.v))
    with np.errstate(all="ignore"):
        # The regularised system amplifies the null space by one over the regularisation: one solve finds a generic null vector.
        u, t, _ = linear.solve(r_x, h, refine=0)
        found, usual = _effects(program, bound, point, u, t), _effects(program, bound, point, r_x, h)
        reaches = [a > _REACHES * b for a, b in zip(found, usual, strict=True)]
    many, ambiguous = np.zeros(count, bool), np.zeros(count, bool)
    for k, reach in enumerate(reaches):
        if k < len(program.outputs) and program.outputs[k].source == "primal":
            many |= reach
        ambiguous |= reach
    return ambiguous, many


def _effects(program: ConeProgram, bound: Bound, point: Point, u: np.ndarray, t: np.ndarray) -> list[np.ndarray]:
    """Largest change (B,) that (u, t), brought to unit size, makes in each output, and in the gradient of P, q, d, A and b."""
    size = np.maximum(_largest(u), _largest(t))[:, None]
    u, t, x, y = u / size, t / size, point.x, point.y
    if bound.scaling is not None:
        u, t, x, y = u * bound.scaling.x, t * bound.scaling.y, x * bound.scaling.x, y * bound.scaling.y
    zero_x, zero_y = np.zeros((len(u), program.structure.n)), np.zeros((len(u), program.structure.m))
    u, t = bound.reduction.expand_step(u, t, zero_x, zero_y)
    x, y = bound.reduction.expand(x, y)
    none = np.zeros(len(u))
    moves = {"primal": u, "dual": t}
    out = [_largest(o.pick(moves[o.source])) if o.source in moves else none for o in program.outputs]
    for m, gradient in zip(program.maps, Adjoint(x, y, u, t, None).gradients(program.structure), strict=True):
        rows = np.flatnonzero(m.parametric)
        out.append(_largest(gradient()[:, rows]) if len(rows) else none)
    return out


def _largest(a: np.ndarray) -> np.ndarray:
    return np.abs(a).max(axis=1, initial=0.0)
