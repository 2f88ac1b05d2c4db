"""Gauss-Newton, Levenberg-Marquardt and dogleg steps, one damping and one status per instance, in any arrays.

A state goes in, a state comes out: the same functions run in numpy loops around the residuals of a framework and inside of traced loops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from layercompiler.solvers.least_squares.evaluation import Point
from layercompiler.solvers.least_squares.linear import PIVOT
from layercompiler.solvers.least_squares.options import LeastSquaresOptions
from layercompiler.status import Status

RUNNING = -1
_SATURATED = 1e12
_FLOOR = 1e-5  # times the tolerance: how small a gradient can be next to the terms that cancel in it


class State(NamedTuple):
    """Where the instances are.

    Attributes:
        values: (B, ambient).
        cost: With the next four, the program at the values; see `Point`.
        widest: (B, n) largest diagonal seen, the scale of each column.
        measure: (B,) relative size of the gradient.
        damping: (B,) of Levenberg-Marquardt, or the trust radius of the dogleg.
        growth: (B,) factor of the damping at the next rejected step.
        status: (B,) `Status`, or RUNNING.
        iterations: (B,) steps tried.
    """

    values: Any
    cost: Any
    energy: Any
    gradient: Any
    entries: Any
    diagonal: Any
    widest: Any
    measure: Any
    damping: Any
    growth: Any
    status: Any
    iterations: Any


class Step(NamedTuple):
    """A step as it was tried: what derivatives of the step take for constant.

    The step is newton (A + diag(scale))^-1 (-g) - slope g, with A and g without what a bound holds.

    Attributes:
        values: (B, ambient) where it began.
        scale: (B, n) added to the diagonal: the damping, and one where a bound holds a coordinate.
        held: (B, n) bool, coordinates that a bound holds; None without bounds.
        newton: (B,) weight of the damped Gauss-Newton step.
        slope: (B, n) weights of the gradient; None but for the dogleg.
        accept: (B,) bool, whether the instance took it.
    """

    values: Any
    scale: Any
    held: Any
    newton: Any
    slope: Any
    accept: Any


class Instances:
    """What the steps need to know of a batch: functions of its arrays.

    Attributes:
        xp: Arrays of the loop.
        evaluate: values -> `Point`.
        hessian: values -> exact entries.
        retract: (values, step) -> values.
        solve: (entries, diagonal, rhs, refine) -> (solution, smallest pivots).
        product: (entries, v) -> matrix times v.
        reference: (n,) positions of the coordinates in `values`, -1 for rotations and translations.
        rows: Places of the entries.
        cols: See `rows`.
        bounds: Lower and upper (n,), or None.
    """

    def __init__(
        self,
        xp: Any,
        evaluate: Callable[..., Point],
        hessian: Callable[..., Any],
        retract: Callable[..., Any],
        solve: Callable[..., Any],
        structure: Any,
    ) -> None:
        self.xp, self.evaluate, self.hessian, self._retract, self.solve = xp, evaluate, hessian, retract, solve
        self.structure, self.bounds = structure, structure.bounds
        self.coordinates = coordinates(structure)

    def retract(self, values: Any, step: Any) -> Any:
        """Values moved by a step, kept within the bounds."""
        moved = self._retract(values, step)
        if self.bounds is None:
            return moved
        lower, upper = ambient_bounds(self.structure)
        return self.xp.clip(moved, self.xp.new(lower, moved), self.xp.new(upper, moved))

    def product(self, entries: Any, v: Any) -> Any:
        """The symmetric matrix of the entries times v (B, n)."""
        xp, s = self.xp, self.structure
        off = np.flatnonzero(s.rows != s.cols)
        a = entries * xp.take(v, xp.new(s.cols), axis=1)
        b = xp.take(entries * xp.take(v, xp.new(s.rows), axis=1), xp.new(off), axis=1)
        parts = xp.permute_dims(xp.concat([a, b], axis=1), (1, 0))
        return xp.permute_dims(xp.segment_sum(parts, np.concatenate([s.rows, s.cols[off]]), s.n), (1, 0))

    def held(self, values: Any, gradient: Any) -> Any:
        """(B, n) True where a bound holds the coordinate; None without bounds."""
        if self.bounds is None:
            return None
        xp = self.xp
        x = xp.take(values, xp.new(np.maximum(self.coordinates, 0)), axis=1)
        lower, upper = (xp.new(b, x) for b in self.bounds)
        return ((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0))

    def masked(self, entries: Any, held: Any) -> Any:
        """Entries without the rows and columns of held coordinates."""
        if held is None:
            return entries
        xp = self.xp
        free = xp.where(held, xp.zeros_like(entries[:, :1]), xp.ones_like(entries[:, :1]))
        return entries * xp.take(free, xp.new(self.structure.rows), axis=1) * xp.take(free, xp.new(self.structure.cols), axis=1)

    def measure(self, values: Any, energy: Any, gradient: Any, diagonal: Any) -> Any:
        """(B,) relative size of the (projected) gradient: the largest cosine between the residual and a column of the Jacobian.

        The columns are those at the values: the largest ones seen on the way may be longer by any factor, and would hide a gradient.
        """
        xp = self.xp
        held = self.held(values, gradient)
        if held is not None:
            gradient = xp.where(held, xp.zeros_like(gradient), gradient)
        if gradient.shape[1] == 0:
            return xp.zeros_like(energy)
        if (self.coordinates < 0).any():
            x = xp.take(values, xp.new(np.maximum(self.coordinates, 0)), axis=1)
            x = xp.where(xp.new(self.coordinates < 0), xp.ones_like(x), x)
        else:
            x = values if values.shape[1] == len(self.coordinates) else xp.take(values, xp.new(self.coordinates), axis=1)
        size = xp.sqrt(xp.sum(diagonal * x * x, axis=1))
        root = xp.sqrt(xp.where(diagonal > 0, diagonal, xp.ones_like(diagonal)))
        return xp.max(xp.abs(gradient) / root, axis=1) / (xp.sqrt(energy) + _FLOOR * size + 1e-300)


def coordinates(structure: Any) -> np.ndarray:
    """(n,) position of each free column in the values where it is a coordinate, -1 elsewhere."""
    parts = []
    for v, a in zip(structure.program.variables, structure.program.ambient_offsets, strict=False):
        parts.append(a + np.arange(v.size) if v.manifold.name == "euclidean" else np.full(v.dof, -1))
    return np.concatenate(parts)[structure.free] if parts else np.zeros(0, int)


def ambient_bounds(structure: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the values (ambient,)."""
    size = int(structure.program.ambient_offsets[-1])
    lower, upper = np.full(size, -np.inf), np.full(size, np.inf)
    at = coordinates(structure)
    lower[at[at >= 0]], upper[at[at >= 0]] = structure.bounds[0][at >= 0], structure.bounds[1][at >= 0]
    return lower, upper


def start(instances: Instances, values: Any, options: LeastSquaresOptions, method: str) -> State:
    """The state at the starting values."""
    xp = instances.xp
    if instances.bounds is not None:
        lower, upper = ambient_bounds(instances.structure)
        values = xp.clip(values, xp.new(lower, values), xp.new(upper, values))
    p = instances.evaluate(values)
    one = xp.ones_like(p.cost)
    good = xp.isfinite(p.cost) & xp.isfinite(xp.sum(p.gradient, axis=1)) & xp.isfinite(xp.sum(p.diagonal, axis=1))
    status = xp.where(good, xp.new(np.int64(RUNNING)), xp.new(np.int64(Status.FAILED)))
    damping = {"levenberg_marquardt": options.damping, "gauss_newton": 0.0, "dogleg": options.radius or -1.0}[method] * one
    measure = instances.measure(values, p.energy, p.gradient, p.diagonal)
    return State(values, p.cost, p.energy, p.gradient, p.entries, p.diagonal, p.diagonal, measure, damping, 2 * one, status, 0 * status)


def advance(instances: Instances, s: State, options: LeastSquaresOptions, method: str, target: float) -> State:
    """One step of every running instance."""
    return attempt(instances, s, options, method, target)[0]


def attempt(instances: Instances, s: State, options: LeastSquaresOptions, method: str, target: float) -> tuple[State, Step]:
    """One step of every running instance, and what it was."""
    xp = instances.xp
    here = s.measure
    running = (s.status == RUNNING) & ~(here <= target)
    solved = (s.status == RUNNING) & (here <= target)
    held = instances.held(s.values, s.gradient)
    entries = instances.masked(s.entries, held)
    gradient = s.gradient if held is None else xp.where(held, xp.zeros_like(s.gradient), s.gradient)
    if method == "dogleg":
        step, predicted, fine, damping, added, newton, slope = _dogleg(instances, s, entries, gradient, held)
    else:
        damping = s.damping
        scale = damping[:, None] * (_positive(xp, s.widest) if options.ellipsoidal else xp.ones_like(s.widest))
        added = scale if held is None else scale + xp.where(held, _unit(xp, s.widest), scale)
        newton, slope = xp.ones_like(damping), None
        step, pivots = instances.solve(entries, added, -gradient, 0)
        fine = (pivots > PIVOT) & xp.isfinite(xp.sum(step, axis=1))
        step = xp.where(fine[:, None], step, xp.zeros_like(step))
        predicted = xp.sum(step * (scale * step - gradient), axis=1) / 2
    values = instances.retract(s.values, step)
    p = instances.evaluate(values)
    finite = xp.isfinite(p.cost) & xp.isfinite(xp.sum(p.gradient, axis=1)) & xp.isfinite(xp.sum(p.diagonal, axis=1))
    gain = s.cost - p.cost
    ratio = gain / xp.where(predicted > 0, predicted, xp.ones_like(predicted))
    widest = xp.maximum(s.widest, p.diagonal)
    there = instances.measure(values, p.energy, p.gradient, p.diagonal)
    level = xp.abs(gain) <= 1e-13 * xp.abs(s.cost)  # rounding: the cost says nothing, the gradient decides
    better = (ratio > 1e-4) & (predicted > 0) & ~level | level & (there < 0.9 * here)
    if method == "gauss_newton":
        better = better | xp.ones_like(better)
    accept = running & fine & finite & better
    ratio = xp.where(level | ~finite, xp.where(accept, 0.75 * xp.ones_like(ratio), 0 * ratio), ratio)
    if method == "dogleg":
        length = xp.sqrt(xp.sum(step * step * _positive(xp, s.widest), axis=1))
        damping = xp.where(
            ratio > 0.75, xp.maximum(damping, 3 * length), xp.where(ratio < 0.25, 0.25 * xp.minimum(length, damping), damping)
        )
        stuck = running & ~accept & ((length <= 1e-15 * xp.sqrt(xp.sum(widest * 1.0, axis=1))) | ~fine)
        growth = s.growth
    elif method == "levenberg_marquardt":
        eased = damping * xp.clip(1 - (2 * ratio - 1) ** 3, 0.1, 2.0)
        raised = xp.maximum(damping, xp.full_like(damping, 1e-9)) * s.growth
        damping = xp.where(accept, xp.maximum(eased, xp.full_like(eased, 1e-15)) if options.adaptive else damping, raised)
        growth = xp.where(accept, xp.full_like(damping, 2.0), xp.minimum(2 * s.growth, xp.full_like(damping, 1e6)))
        stuck = running & ~accept & ((damping > _SATURATED) | (level & (here < 1e-3)))
    else:
        growth, stuck = s.growth, running & ~accept
    code = xp.where(solved, xp.zeros_like(s.status), s.status)
    code = xp.where(stuck, xp.full_like(code, int(Status.FAILED if method == "gauss_newton" else Status.STALLED)), code)
    iterations = s.iterations + xp.where(running, xp.ones_like(s.iterations), xp.zeros_like(s.iterations))
    damping, growth = xp.where(running, damping, s.damping), xp.where(running, growth, s.growth)
    moved = _moved(xp, accept, s, values, p, widest, there)._replace(damping=damping, growth=growth, status=code, iterations=iterations)
    return moved, Step(s.values, added, held, newton, slope, accept)


def refine(instances: Instances, s: State, target: float) -> State:
    """One Newton step with the exact Hessian, of every running instance, taken only where the gradient falls to less than half."""
    xp = instances.xp
    here = s.measure
    running = (s.status == RUNNING) & ~(here <= target)
    held = instances.held(s.values, s.gradient)
    gradient = s.gradient if held is None else xp.where(held, xp.zeros_like(s.gradient), s.gradient)
    exact = instances.masked(instances.hessian(s.values), held)
    zero = xp.zeros_like(s.widest)
    step, pivots = instances.solve(exact, zero if held is None else xp.where(held, _unit(xp, s.widest), zero), -gradient, 1)
    fine = (pivots > PIVOT) & xp.isfinite(xp.sum(step, axis=1))
    values = instances.retract(s.values, xp.where(fine[:, None], step, xp.zeros_like(step)))
    p = instances.evaluate(values)
    widest = xp.maximum(s.widest, p.diagonal)
    there = instances.measure(values, p.energy, p.gradient, p.diagonal)
    accept = running & fine & xp.isfinite(there) & (there < 0.5 * here) & (p.cost <= s.cost * (1 + 1e-12) + 1e-300)
    status = xp.where((s.status == RUNNING) & ~accept, xp.zeros_like(s.status), s.status)  # nothing more to gain
    return _moved(xp, accept, s, values, p, widest, there)._replace(status=status)


def _dogleg(instances: Instances, s: State, entries: Any, gradient: Any, held: Any) -> tuple[Any, ...]:
    """The step of Powell's dogleg in coordinates scaled by the columns; (step, predicted decrease, fine, radius, and scale, newton and
    slope of a `Step`).
    """
    xp = instances.xp
    D = _positive(xp, s.widest)
    steepest = -gradient / D
    squared = xp.sum(steepest * steepest * D, axis=1)
    curvature = xp.sum(steepest * instances.product(entries, steepest), axis=1)
    cauchy = squared / xp.where(curvature > 0, curvature, xp.ones_like(curvature))
    along = xp.sqrt(squared)
    radius = xp.where(s.damping > 0, s.damping, 10 * cauchy * along)
    small = 1e-10 * D
    added = small if held is None else small + xp.where(held, _unit(xp, D), small)
    newton, pivots = instances.solve(entries, added, -gradient, 0)
    whole = (pivots > PIVOT) & xp.isfinite(xp.sum(newton, axis=1))
    newton = xp.where(whole[:, None], newton, cauchy[:, None] * steepest)
    length = xp.sqrt(xp.sum(newton * newton * D, axis=1))
    first = xp.minimum(cauchy, radius / xp.where(along > 0, along, xp.ones_like(along)))
    a = first[:, None] * steepest
    b = newton - a
    bb, ab = xp.sum(b * b * D, axis=1), xp.sum(a * b * D, axis=1)
    gap = xp.maximum(radius * radius - xp.sum(a * a * D, axis=1), xp.zeros_like(bb))
    root = xp.sqrt(ab * ab + bb * gap)
    share = gap / xp.where(ab + root > 0, ab + root, xp.ones_like(bb))
    share = xp.where(length <= radius, xp.ones_like(share), xp.clip(share, 0.0, 1.0))
    step = a + share[:, None] * b
    fine = xp.isfinite(xp.sum(step, axis=1))
    step = xp.where(fine[:, None], step, xp.zeros_like(step))
    predicted = -xp.sum(gradient * step, axis=1) - xp.sum(step * instances.product(entries, step), axis=1) / 2
    straight = (1 - share) * first + xp.where(whole, xp.zeros_like(share), share * cauchy)
    return step, predicted, fine, radius, added, xp.where(whole, share, xp.zeros_like(share)), straight[:, None] / D


def _positive(xp: Any, widest: Any) -> Any:
    """Column scales, one for columns that are zero."""
    return xp.where(widest > 0, widest, xp.ones_like(widest))


def _unit(xp: Any, widest: Any) -> Any:
    return xp.ones_like(widest)


def _moved(xp: Any, mask: Any, s: State, values: Any, p: Point, widest: Any, measure: Any) -> State:
    """The state with another point where the mask says so."""
    if xp.name == "numpy":
        if mask.all():
            return s._replace(values=values, **p._asdict(), widest=widest, measure=measure)
        if not mask.any():
            return s

    def select(new: Any, old: Any) -> Any:
        return xp.where(xp.reshape(mask, (-1, *(1,) * (new.ndim - 1))), new, old)

    new = {"values": values, **p._asdict(), "widest": widest, "measure": measure}
    return s._replace(**{name: select(value, getattr(s, name)) for name, value in new.items()})


def finish(instances: Instances, s: State, tolerance: float) -> tuple[Any, Any]:
    """(status, measure): decided by the gradient alone."""
    xp = instances.xp
    measure = s.measure
    good = (measure <= tolerance) & (s.status != int(Status.FAILED))
    status = xp.where(
        (s.status == RUNNING) | (s.status == int(Status.SOLVED)), xp.full_like(s.status, int(Status.ITERATION_LIMIT)), s.status
    )
    return xp.where(good, xp.zeros_like(status), status), measure
