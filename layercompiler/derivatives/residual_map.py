"""The residual map of a quadratic cone program: certificate, Newton refinement, and the linearisation that differentiates.

With v = y - s, y = Proj_{K*}(v), s = y - v the optimality conditions are F(x, v) = 0 with

    F(x, v) = [P x + A'y + q;  A x + s - b],      F' = [[P, A'D], [A, D - I]],  D = Proj'(v).

One matrix refines (Newton), certifies (||F||) and differentiates (source: Busseti, Moursi, Boyd 2019; Agrawal et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from layercompiler.cones import Product, ProductProjection
from layercompiler.derivatives.products import Products
from layercompiler.derivatives.scaling import Equilibrator
from layercompiler.derivatives.system import Linearization, Refused, System
from layercompiler.errors import DerivativeError
from layercompiler.programs.cone import Data, Structure

TARGET = 1e-13  # relative residual at which refinement stops
_SHORTER = (0.5, 0.25, 0.1, 0.02)


@dataclass(frozen=True)
class Point:
    """A batch of points with their residuals, in scaled coordinates.

    Attributes:
        cones: The product cone.
        x: (B, n).
        v: (B, m), y - s.
        y: (B, m), the projection of v onto K*.
        F_x: (B, n) stationarity residual; `F_y` (B, m) feasibility residual.
        norm: (B,) relative residual: the larger of both, each over one plus the size of its terms.
        suspect: (B,) bool, where the projection may have a kink; None where that is not known.
    """

    cones: Product
    x: np.ndarray
    v: np.ndarray
    y: np.ndarray
    F_x: np.ndarray
    F_y: np.ndarray
    norm: np.ndarray
    suspect: np.ndarray | None = None

    @cached_property
    def projection(self) -> ProductProjection:
        """The projection of v onto K*, with its derivatives."""
        with np.errstate(all="ignore"):
            return self.cones.project_dual(self.v)

    def take(self, index: np.ndarray) -> Point:
        """The instances `index`."""
        return Point(self.cones, *(a[index] for a in self._arrays), suspect=None if self.suspect is None else self.suspect[index])

    def put(self, index: np.ndarray, other: Point) -> Point:
        """This batch with the instances `index` replaced by those of `other`."""
        if len(index) == 0:
            return self
        mixed = []
        for mine, theirs in zip(self._arrays, other._arrays, strict=True):
            mixed.append(mine.copy())
            mixed[-1][index] = theirs
        suspect = None
        if self.suspect is not None and other.suspect is not None:
            suspect = self.suspect.copy()
            suspect[index] = other.suspect
        return Point(self.cones, *mixed, suspect=suspect)

    @property
    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.x, self.v, self.y, self.F_x, self.F_y, self.norm

    def smooth(self) -> np.ndarray:
        """(B,) bool: the projection is differentiable here."""
        if self.suspect is not None:
            out, index = ~self.suspect, np.flatnonzero(self.suspect)
            if len(index):
                out[index] = Point(self.cones, *(a[index] for a in self._arrays)).smooth()
            return out
        if "projection" in self.__dict__:
            return self.projection.smooth
        out = np.ones(len(self.x), bool)
        for (cone, count), rows in zip(self.cones.blocks, self.cones.slices, strict=True):
            v, y = (a[:, rows].reshape(len(out), count, cone.dim) for a in (self.v, self.y))
            # The projections of these two take long, and have a kink nowhere but where y, s or an entry of v vanishes.
            if cone.name in ("exponential", "power"):
                size = np.abs(v).max(axis=2)
                least = np.minimum(np.abs(v).min(axis=2), np.minimum(np.abs(y).max(axis=2), np.abs(y - v).max(axis=2)))
                index = np.flatnonzero((least <= 1e-8 * size).any(axis=1))
                out[index] &= cone.project_dual(v[index]).smooth.all(axis=1)
            else:
                out &= cone.project_dual(v).smooth.all(axis=1)
        return out


class ResidualMap:
    """F, its refinement and its linearisation for one structure.

    Args:
        structure: The pattern.
        samples: Data at two random parameter values, see `System`.
        linear: Name of the linear solve.
    """

    def __init__(self, structure: Structure, samples: Data, linear: str = "auto") -> None:
        self.structure = structure
        self._plan = samples, linear
        self.equilibrate: Equilibrator | None = Equilibrator(structure)  # None where data are taken as they are
        self._polyhedral = all(cone.name in ("zero", "nonnegative") for cone, _ in structure.cones.blocks)

    @cached_property
    def _system(self) -> System | DerivativeError:
        try:
            return System(self.structure, *self._plan)
        except DerivativeError as refusal:
            return refusal

    @property
    def system(self) -> System:
        """The linear system with its symbolic factorisation.

        Raises:
            DerivativeError: It is too large.
        """
        if isinstance(self._system, DerivativeError):
            raise self._system
        return self._system

    def prepare(self) -> None:
        """Do the symbolic work now, at compile time, rather than in the first call."""
        _ = self._system

    @property
    def order(self) -> int:
        """Order of the linear system, 0 where there is none."""
        return 0 if isinstance(self._system, DerivativeError) else self._system.size

    @property
    def flops(self) -> float:
        """Operations of one factorisation, roughly."""
        return 0.0 if isinstance(self._system, DerivativeError) else float(self._system.linear.flops + self._system.rotation.flops)

    @property
    def describe(self) -> str:
        """Name of the linear solve, and the blocks treated in their eigenbasis."""
        if isinstance(self._system, DerivativeError):
            return f"none, and no refinement: {self._system.what}"
        turned = len(self.system.rotation.turns) + len(self.system.rotation.row_turns)
        return f"{self.system.linear.name} factorization" + (f", {turned} PSD groups in their eigenbasis" if turned else "")

    def point(self, data: Data, products: Products, x: np.ndarray, v: np.ndarray) -> Point:
        """Evaluate F at (x, v)."""
        with np.errstate(all="ignore"):
            projection = self.structure.cones.project_dual(v)
            y = projection.y
            Px, ATy, Ax, s = products.P(x), products.AT(y), products.A(x), y - v
            F_x, F_y = Px + ATy + data.q, Ax + s - data.b
            top = 1.0 + np.maximum(np.maximum(_size(Px), _size(ATy)), _size(data.q))
            bottom = 1.0 + np.maximum(np.maximum(_size(Ax), _size(s)), _size(data.b))
            norm = np.maximum(_size(F_x) / top, _size(F_y) / bottom)
            point = Point(self.structure.cones, x, v, y, F_x, F_y, np.where(np.isnan(norm), np.inf, norm))
            point.__dict__["projection"] = projection
            return point

    def linearize(self, data: Data, point: Point, threads: int = 1) -> Any:
        """Factor the linear system at a point; where it is too large, what raises once it is asked for a solution."""
        if isinstance(self._system, DerivativeError):
            return Refused(self._system, len(point.x))
        with np.errstate(all="ignore"):
            return self.system.factor(data, point.projection)

    def refine(
        self, data: Data, products: Products, x: np.ndarray, v: np.ndarray, steps: int, threads: int = 1
    ) -> tuple[Point, np.ndarray, Linearization | None]:
        """Newton steps on F, each instance on its own, taken only while its ||F|| falls.

        Returns:
            The best point of each instance, the number of steps taken (B,), and the last linearisation where it is also
            that of the returned points.
        """
        point = self.point(data, products, x, v)
        taken = np.zeros(len(x), int)
        active = np.flatnonzero((point.norm > TARGET) & np.isfinite(point.norm))
        kept: Linearization | None = None
        for _ in range(steps):
            if len(active) == 0 or isinstance(self._system, DerivativeError):
                break
            whole = len(active) == len(x)
            part, bound, here = (data, products, point) if whole else (data.take(active), products.take(active), point.take(active))
            linear = self.linearize(part, here, threads)
            dx, dy, _ = linear.solve(-here.F_x, -here.F_y)
            with np.errstate(all="ignore"):
                dv = bound.A(dx) + dy + here.F_y
            after = self._search(part, bound, here, dx, dv)
            moved = after.norm < here.norm
            # A step that no longer gains is the end: the limit of rounding, or a degenerate point.
            goes_on = moved & (after.norm > TARGET) & (after.norm < 0.9 * here.norm)
            if moved.all():
                point = after if whole else point.put(active, after)
            elif moved.any():
                point = point.put(active[moved], after.take(np.flatnonzero(moved)))
            kept = linear if whole and self._same_derivative(here, point) else None
            taken[active[moved]] += 1
            active = active[goes_on]
        return point, taken, kept

    def _same_derivative(self, before: Point, after: Point) -> bool:
        """Whether the projection's derivative is the same at two batches of points: equal active sets of polyhedral cones."""
        return self._polyhedral and bool(np.array_equal(before.v > 0, after.v > 0))

    def _search(self, data: Data, products: Products, here: Point, dx: np.ndarray, dv: np.ndarray) -> Point:
        """The first of a few step lengths that lowers ||F||, per instance; where none does, the point itself."""
        trial = self.point(data, products, here.x + dx, here.v + dv)
        falls = trial.norm < here.norm
        if falls.all():
            return trial
        best = here.put(np.flatnonzero(falls), trial.take(np.flatnonzero(falls)))
        open_ = np.flatnonzero(~falls)
        for step in _SHORTER:
            part, bound = data.take(open_), products.take(open_)
            trial = self.point(part, bound, here.x[open_] + step * dx[open_], here.v[open_] + step * dv[open_])
            falls = trial.norm < here.norm[open_]
            best = best.put(open_[falls], trial.take(np.flatnonzero(falls)))
            open_ = open_[~falls]
            if len(open_) == 0:
                break
        return best


def _size(a: np.ndarray) -> np.ndarray:
    return np.abs(a).max(axis=1, initial=0.0)
