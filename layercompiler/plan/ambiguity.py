"""What a singular linear system leaves open: the solution that the outputs read, or the gradient that the parameters get.

A null vector (u, t) of the system is a direction along which the optimality conditions do not change to first order. The solution
is one of many where u reaches an output; the gradient is one of many where the data gradient of (u, t) reaches a parameter. An
inactive epigraph variable, say, does neither.
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
    r_x, h = rng.standard_normal(point.x.shape[1]), rng.standard_normal(point.v.shape[1])
    with np.errstate(all="ignore"):
        # The regularised system amplifies the null space by one over the regularisation: one solve finds a generic null vector.
        u, t, _ = linear.solve(np.repeat(r_x[None], len(point.x), axis=0), np.repeat(h[None], len(point.x), axis=0), refine=0)
        scale = np.maximum(np.abs(u).max(axis=1, initial=0.0), np.abs(t).max(axis=1, initial=0.0))[:, None]
        u, t, x, y = u / scale, t / scale, point.x, point.y
        if bound.scaling is not None:
            u, t, x, y = u * bound.scaling.x, t * bound.scaling.y, x * bound.scaling.x, y * bound.scaling.y
        zero_x, zero_y = np.zeros(bound.full.q.shape), np.zeros((len(u), program.structure.m))
        u, t = bound.reduction.expand_step(u, t, zero_x, zero_y)
        size = np.maximum(np.abs(u).max(axis=1, initial=0.0), np.abs(t).max(axis=1, initial=0.0))
        many, ambiguous = np.zeros(len(u), bool), np.zeros(len(u), bool)
        for output in program.outputs:
            if output.source == "primal" and output.size:
                many |= np.abs(output.pick(u)).max(axis=1) > _REACHES * size
            elif output.source == "dual" and output.size:
                ambiguous |= np.abs(output.pick(t)).max(axis=1) > _REACHES * size
        x, y = bound.reduction.expand(x, y)
        gradients = Adjoint(x, y, u, t, None).gradients(program.structure)
        for m, gradient in zip(program.maps, gradients, strict=True):
            rows = np.flatnonzero(m.parametric)
            if len(rows):
                ambiguous |= np.abs(gradient()[:, rows]).max(axis=1) > _REACHES * size * (1.0 + np.abs(x).max(axis=1, initial=0.0))
    return ambiguous | many, many
