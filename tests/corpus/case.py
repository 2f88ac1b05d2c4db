"""A corpus case: a builder `f(n, seed) -> Case`, where `seed` fixes the constants of the problem and `n` is its size.

`Case.sample(rng)` draws one feasible, generically differentiable parameter point, in the order of `Case.parameters`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cvxpy as cp
import numpy as np


@dataclasses.dataclass
class Case:
    problem: cp.Problem
    parameters: list[cp.Parameter]
    variables: list[cp.Variable]
    sample: Callable[[np.random.Generator], list[np.ndarray]]
    gp: bool = False


@dataclasses.dataclass
class Entry:
    name: str
    build: Callable[[int, int], Case]
    family: str  # LP QP SOCP EXP POW SDP GP MIXED
    small: int
    medium: int
    note: str = ""


class Registry(dict):
    def case(self, family: str, small: int, medium: int, note: str = ""):
        def deco(fn):
            self[fn.__name__] = Entry(fn.__name__, fn, family, small, medium, note)
            return fn

        return deco


def const_rng(seed: int) -> np.random.Generator:
    return np.random.default_rng([7919, seed])


def spd(rng, n, lo=0.5, hi=2.0):
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return (q * rng.uniform(lo, hi, n)) @ q.T


def sym(rng, n):
    a = rng.standard_normal((n, n))
    return (a + a.T) / 2


def direction_like(rng, param: cp.Parameter, value: np.ndarray) -> np.ndarray:
    """A random direction that keeps the parameter inside its declared structure (symmetric / diag / sparse)."""
    scale = max(float(np.sqrt(np.mean(np.square(value)))), 0.05) if value.size else 1.0
    d = rng.standard_normal(np.shape(value)) * scale
    at = param.attributes
    if at.get("symmetric") or at.get("PSD") or at.get("NSD"):
        d = (d + d.T) / 2
    if at.get("diag"):
        d = np.diag(np.diag(d))
    return np.asarray(d, dtype=float)
