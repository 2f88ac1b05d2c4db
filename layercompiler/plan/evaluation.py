"""A solved batch and everything that is linear at it: outputs, VJP, JVP, and the second-order products.

With gx, gy the cotangents of x and y, (u, t) solves the linear system of the residual map; the gradients of the data that it gives
are pulled back to the parameters by the transposes of the affine maps. Second order differentiates these formulas once more along
a tangent; the only curvature beyond the bilinear terms is the second derivative of the projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from layercompiler.derivatives.data_gradient import Adjoint
from layercompiler.derivatives.products import Products
from layercompiler.derivatives.residual_map import Point
from layercompiler.derivatives.scaling import Scaling
from layercompiler.derivatives.system import Linearization
from layercompiler.errors import DerivativeError, ShapeError
from layercompiler.plan.arguments import Values
from layercompiler.plan.chain import Chain
from layercompiler.plan.failure import failure
from layercompiler.plan.parts import Parts
from layercompiler.programs.cone import Data, Structure
from layercompiler.programs.presolve import Reduction
from layercompiler.status import Info, Solution, Status

ACCURATE = 1e-9  # relative residual of the linear system below which a derivative is returned as it is
_LEAST_SQUARES = 3000  # largest system that falls back to dense least squares


@dataclass(frozen=True)
class Bound:
    """The numbers of one call: data of the program as written, and the reduced and scaled data that are solved."""

    values: Values
    chain: Chain
    reduction: Reduction
    scaled: Data
    scaling: Scaling | None
    structure: Structure

    @cached_property
    def full(self) -> Data:
        """Data of the program as written."""
        with np.errstate(all="ignore"):
            return self.chain.program.bind(self.chain.thetas(), self.values.count)

    @cached_property
    def products(self) -> Products:
        """Products with the scaled matrices."""
        with np.errstate(all="ignore"):
            return Products.of(self.structure, self.scaled)

    @classmethod
    def of(cls, problem: Parts, values: Values) -> Bound:
        """Bind checked arguments."""
        chain, binding, equilibrate = Chain(problem.program, values), problem.binding, problem.map.equilibrate
        if binding is not None and values.count:
            reduction, rough = binding.bind(chain.thetas(), values.count, problem.threads, equilibrate.kernel if equilibrate else None)
            scaled, scaling = reduction.data, None
            if equilibrate and rough is not None and rough.any():
                scaled, scaling = equilibrate.scale(scaled, rough)
        else:
            with np.errstate(all="ignore"):
                reduction = problem.elimination.bind(problem.program.bind(chain.thetas(), values.count))
            scaled, scaling = equilibrate(reduction.data) if equilibrate else (reduction.data, None)
        return cls(values, chain, reduction, scaled, scaling, problem.structure)


class Evaluation:
    """One solved batch; a pure value that any thread may differentiate any number of times.

    Attributes:
        outputs: One array per output, (batch..., *shape), float64.
        z: (batch..., zsize) primal-dual vector; NaN marks failed instances.
        info: Per-instance facts.
    """

    fresh = True  # whether gradients are the caller's to write to, without a copy

    def __init__(self, problem: Parts, bound: Bound, point: Point, linear: Linearization | None, info: Info) -> None:
        self.problem, self.bound, self.point, self.info = problem, bound, point, info
        self._linear = linear
        self.batch, self.count = bound.values.batch, bound.values.count
        self.bad = np.flatnonzero(info.status.reshape(-1) != Status.SOLVED)
        scaling, binding = bound.scaling, problem.binding if self.count else None
        picked: dict[int, np.ndarray] = {}
        if binding is not None:
            self.x, self.y, picked = binding.recover(point, bound.reduction, scaling, problem.threads)
        else:
            x_hat, y_hat = (point.x, point.y) if scaling is None else (point.x * scaling.x, point.y * scaling.y)
            with np.errstate(all="ignore"):
                self.x, self.y = bound.reduction.expand(x_hat, y_hat)
        z = np.concatenate([point.x, point.v], axis=1)
        if len(self.bad):
            z[self.bad] = np.nan
        self.z = z.reshape((*self.batch, z.shape[1]))
        self._flat = tuple(self._read(o, picked.get(k)) for k, o in enumerate(problem.outputs))
        self.outputs = tuple(self._shaped(f, o.shape) for f, o in zip(self._flat, problem.outputs, strict=True))

    # Outputs -------------------------------------------------------------------------------------------------------------

    def _read(self, output: Any, raw: np.ndarray | None = None) -> np.ndarray:
        """Flat values (count, size) of one output, NaN where the instance failed; `raw` is its part of the point, where it is known."""
        with np.errstate(all="ignore"):
            if output.source == "value":
                flat = output.sign * self._objective()[:, None]
            else:
                flat = output.pick(self.x if output.source == "primal" else self.y) if raw is None else raw
            flat = np.exp(flat) if output.exponential else flat
        if len(self.bad):
            flat = np.array(flat)
            flat[self.bad] = np.nan
        return flat

    def _objective(self) -> np.ndarray:
        d = self.bound.full
        return np.sum(self.x * (0.5 * self._P(d.P, self.x) + d.q), axis=1) + d.d[:, 0]

    def _shaped(self, flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return flat.reshape((*self.batch, *shape))

    def solution(self) -> Solution:
        """Everything a person asks for after a solve."""
        outputs = self.problem.outputs
        values: dict[str, np.ndarray] = {o.name: v for o, v in zip(outputs, self.outputs, strict=True)}
        value = self._shaped(self._read(self.problem.program.value), ())
        _ = self.info.unique  # now: it holds on to the data until it is known
        return Solution(self.outputs, values, value, self.info, self.z)

    def raise_failures(self) -> None:
        """Raise SolveError naming the failed instances and their statuses."""
        raise failure(self.info.status, self.batch, self.solution())

    # First order ---------------------------------------------------------------------------------------------------------

    def vjp(self, cotangents: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """Pull cotangents of the outputs back to the parameters.

        Args:
            cotangents: One per output, (batch..., *shape), or None for zero.

        Returns:
            One per parameter, of the shape of the argument (summed over broadcast dimensions).
        """
        if self.count == 0:
            return self.bound.chain.zeros()
        g = self._cotangents(cotangents)
        bound, binding, threads = self.bound, self.problem.binding, self.problem.threads
        chain, s = bound.chain, self.problem.program.structure
        route = self.linear.route() if binding is not None and binding.reaches(g) and not len(self.bad) else None
        if binding is not None and route is not None:
            pulled = self._through_exponentials(g) if binding.exponential else g
            gradients, residual = binding.adjoint(pulled, (self.x, self.y), bound, route, threads)
            if residual.max() <= ACCURATE:  # not where one is NaN
                return chain.to_parameters(gradients)
        adjoint = self._adjoint(*self._pull_outputs(g))
        if binding is None:
            return chain.to_parameters(chain.pull(adjoint.gradients(s), self._clean))
        shared = [len(r) == 1 for r in chain.raw]
        return chain.to_parameters(binding.pull(adjoint, shared, self.bad, threads))

    def jvp(self, tangents: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """Push tangents of the parameters forward to the outputs.

        Args:
            tangents: One per parameter, of the shape of the argument, or None for zero.

        Returns:
            One per output, (batch..., *shape).
        """
        if self.count == 0:
            return tuple(np.zeros_like(o) for o in self.outputs)
        tangent = self._push(self.bound.chain.tangents(tangents))
        return tuple(
            self._shaped(self._clean(tangent.output(o, f)), o.shape) for o, f in zip(self.problem.outputs, self._flat, strict=True)
        )

    # Second order --------------------------------------------------------------------------------------------------------

    def hvp(self, cotangents: Sequence[Any], tangents: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """Derivative of `vjp(cotangents)` along `tangents`: (d^2/dtheta^2 <g, f>) h, one per parameter."""
        if self.count == 0:
            return self.bound.chain.zeros()
        chain, s, A = self.bound.chain, self.problem.program.structure, self.bound.full.A
        g = self._cotangents(cotangents)
        channels = chain.tangents(tangents)
        h = self._push(channels)
        gx, gy, gv = self._pull_outputs(g)
        at = self._adjoint(gx, gy, gv)
        dgx, dgy, dgv = self._pull_outputs_along(g, h)
        curved = self._curvature(self._A(A, at.u) + at.t - gy, h.dv)
        r_x = dgx - self._P(h.P, at.u) - self._AT(h.A, at.t) - self._AT(A, curved)
        du, dt = self._solve(r_x, dgy - self._A(h.A, at.u) - curved)
        moved = Adjoint(h.x, h.y, du, dt + curved, dgv)
        along = chain.pull(at.along(s, moved), self._clean)
        plain = chain.pull(at.gradients(s), self._clean) if any(c.log for c in self.problem.program.channels) else along
        return chain.to_parameters_along(along, plain, channels)

    def second(self, tangents1: Sequence[Any], tangents2: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """Second derivative of the outputs along two tangents, D^2 f [h1, h2]; one per output."""
        if self.count == 0:
            return tuple(np.zeros_like(o) for o in self.outputs)
        chain = self.bound.chain
        c1, c2 = chain.tangents(tangents1), chain.tangents(tangents2)
        h, k = self._push(c1), self._push(c2)
        mixed = self._push_data(chain.mixed(c1, c2))
        A = self.bound.full.A
        R_x = self._P(k.P, h.x) + self._AT(k.A, h.y) + self._P(h.P, k.x) + self._AT(h.A, k.y)
        R_x = R_x + self._P(mixed.P, self.x) + self._AT(mixed.A, self.y) + _or_zero(mixed.q)
        R_y = self._A(k.A, h.x) + self._A(h.A, k.x) + self._A(mixed.A, self.x) - _or_zero(mixed.b)
        curved = self._curvature(h.dv, k.dv)
        ddx, ddy = self._solve(-(R_x + self._AT(A, curved)), -(R_y + curved))
        ddy = ddy + curved
        d = self.bound.full
        Px = self._P(d.P, self.x)
        ddv = np.sum((Px + d.q) * ddx, axis=1) + np.sum(self._P(d.P, h.x) * k.x, axis=1)
        for a, b in ((h, k), (k, h)):
            ddv = ddv + np.sum((self._P(a.P, self.x) + _or_zero(a.q)) * b.x, axis=1)
        ddv = ddv + mixed.value(self.x, self._P(mixed.P, self.x))
        both = Tangent(ddx, ddy, np.zeros((1, 1)), None, None, None, None, None, ddv)
        out = []
        for o, f in zip(self.problem.outputs, self._flat, strict=True):
            flat = both.raw(o)
            flat = f * (flat + h.raw(o) * k.raw(o)) if o.exponential else flat
            out.append(self._shaped(self._clean(flat), o.shape))
        return tuple(out)

    # The linear system ---------------------------------------------------------------------------------------------------

    @property
    def linear(self) -> Linearization:
        """The factored linear system, made on first use where the solve did not leave it behind."""
        if self._linear is None:
            self._linear = self.problem.map.linearize(self.bound.scaled, self.point, self.problem.threads)
        return self._linear

    def _adjoint(self, gx: np.ndarray, gy: np.ndarray, gv: np.ndarray | None) -> Adjoint:
        return Adjoint(self.x, self.y, *self._solve(gx, gy), gv)

    def _solve(self, r_x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P u + A't = r_x, t = D (A u + t - ... ) for full-size right-hand sides: see `System`."""
        reduction, scaling = self.bound.reduction, self.bound.scaling
        with np.errstate(all="ignore"):
            a, b = reduction.reduce_rhs(r_x, h)
            if scaling is not None:
                a, b = a * scaling.r_x, b * scaling.r_y
            u, t, residual = self.linear.solve(a, b)
            u, t = self._robust(a, b, u, t, residual)
            if scaling is not None:
                u, t = u * scaling.x, t * scaling.y
            return reduction.expand_step(u, t, r_x, h)

    def _robust(self, a: np.ndarray, b: np.ndarray, u: np.ndarray, t: np.ndarray, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Least squares where refinement left a residual: singular systems get their minimum-norm solution."""
        asked = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
        poor = asked & ~(residual <= ACCURATE)
        poor[self.bad] = False
        if poor.any():
            if self.problem.map.order > _LEAST_SQUARES:
                raise DerivativeError(
                    "the linear system of the derivative is singular and too large for least squares",
                    where=f"instances {np.flatnonzero(poor)[:8].tolist()}",
                    expected=f"relative residual <= {ACCURATE:g}",
                    got=f"{np.nanmax(residual[poor]):.1e}",
                    mend="add a small strictly convex term to the objective so that the solution is unique",
                )
            u, t = np.array(u), np.array(t)
            for i in np.flatnonzero(poor):
                u[i], t[i] = self.linear.solve_least_squares(int(i), a[i], b[i])
        return u, t

    def _curvature(self, xi: np.ndarray, dv: np.ndarray) -> np.ndarray:
        """D^2 Proj[dv, xi] in the full program's coordinates; zero on the eliminated rows, whose cone is linear."""
        e, scaling = self.problem.elimination, self.bound.scaling
        a, b = (xi[:, e.keep_y], dv[:, e.keep_y]) if e.active else (xi, dv)
        if scaling is not None:
            a, b = a / scaling.y, b / scaling.y
        out = self.point.projection.second(a, b)
        if scaling is not None:
            out = out * scaling.y
        if not e.active:
            return out
        wide = np.zeros((len(out), e.full.m))
        wide[:, e.keep_y] = out
        return wide

    # Products with data-shaped matrices ----------------------------------------------------------------------------------

    def _P(self, values: np.ndarray | None, x: np.ndarray) -> np.ndarray:
        s = self.problem.program.structure
        if values is None or len(s.P_rows) == 0:
            return np.zeros_like(x)
        return s.P_pattern.product(values[:, s.P_mirror], x)

    def _A(self, values: np.ndarray | None, x: np.ndarray) -> np.ndarray:
        s = self.problem.program.structure
        return np.zeros((len(x), s.m)) if values is None else s.A_pattern.product(values, x)

    def _AT(self, values: np.ndarray | None, y: np.ndarray) -> np.ndarray:
        s = self.problem.program.structure
        return np.zeros((len(y), s.n)) if values is None else s.A_pattern.transposed(values, y)

    # Cotangents ----------------------------------------------------------------------------------------------------------

    def _cotangents(self, cotangents: Sequence[Any]) -> list[np.ndarray | None]:
        outputs = self.problem.outputs
        if len(cotangents) != len(outputs):
            raise ShapeError("one cotangent per output is needed", expected=f"{len(outputs)}", got=f"{len(cotangents)}")
        flat: list[np.ndarray | None] = []
        for o, g in zip(outputs, cotangents, strict=True):
            if g is None:
                flat.append(None)
                continue
            array = g if type(g) is np.ndarray and g.dtype == np.float64 else np.asarray(g, dtype=float)
            if array.shape != (*self.batch, *o.shape):
                raise ShapeError(
                    f"the cotangent of output '{o.name}' has the wrong shape", expected=f"{(*self.batch, *o.shape)}", got=f"{array.shape}"
                )
            array = array.reshape(self.count, o.size)
            if len(self.bad):
                array = np.array(array)
                array[self.bad] = 0.0
            flat.append(array)
        return flat

    def _pull_outputs(self, g: Sequence[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Cotangents of x, y and of the objective (None where no output is the value)."""
        s, binding, outputs = self.problem.program.structure, self.problem.binding, self.problem.outputs
        g = self._through_exponentials(g)
        gv = None
        for o, pulled in zip(outputs, g, strict=True):
            if o.source == "value" and pulled is not None:
                gv = _plus(gv, o.sign * pulled)
        if binding is not None:
            gx, gy = binding.spread(g, self.count, self.problem.threads)
        else:
            gx, gy = np.zeros((self.count, s.n)), np.zeros((self.count, s.m))
            for o, pulled in zip(outputs, g, strict=True):
                if o.source != "value" and pulled is not None:
                    o.spread(pulled, gx if o.source == "primal" else gy)
        if gv is not None:
            d = self.bound.full
            gx += gv * (self._P(d.P, self.x) + d.q)
        return gx, gy, gv

    def _through_exponentials(self, g: Sequence[np.ndarray | None]) -> Sequence[np.ndarray | None]:
        """Cotangents of the outputs before their exponentials."""
        triples = zip(self.problem.outputs, g, self._flat, strict=True)
        return [p if p is None or not o.exponential else p * self._clean(f) for o, p, f in triples]

    def _pull_outputs_along(self, g: Sequence[np.ndarray | None], h: Tangent) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Derivative of `_pull_outputs` along a tangent."""
        s = self.problem.program.structure
        gx, gy, gv, dgv = np.zeros((self.count, s.n)), np.zeros((self.count, s.m)), None, None
        for o, flat, value in zip(self.problem.outputs, g, self._flat, strict=True):
            if flat is None:
                continue
            if o.exponential:
                pulled = flat * self._clean(value)
                moved = pulled * h.raw(o)
                if o.source == "value":
                    dgv = _plus(dgv, o.sign * moved)
                else:
                    o.spread(moved, gx if o.source == "primal" else gy)
            else:
                pulled = flat
            if o.source == "value":
                gv = _plus(gv, o.sign * pulled)
        d = self.bound.full
        if gv is not None:
            gx += gv * (self._P(h.P, self.x) + self._P(d.P, h.x) + _or_zero(h.q))
        if dgv is not None:
            gx += dgv * (self._P(d.P, self.x) + d.q)
        return gx, gy, dgv

    # Tangents ------------------------------------------------------------------------------------------------------------

    def _push_data(self, channels: Sequence[np.ndarray | None]) -> Tangent:
        P, q, d, A, b = (m.linear(channels) for m in self.problem.program.maps)
        none = np.zeros((1, 1))
        return Tangent(none, none, none, P, q, d, A, b, none)

    def _push(self, channels: Sequence[np.ndarray | None]) -> Tangent:
        """Tangents of the data, of x, y, v and of the objective along channel tangents."""
        t = self._push_data(channels)
        d = self.bound.full
        Px = self._P(t.P, self.x)
        r_x = Px + self._AT(t.A, self.y) + _or_zero(t.q)
        r_y = self._A(t.A, self.x) - _or_zero(t.b)
        dx, dy = self._solve(-r_x, -r_y)
        dv = self._A(d.A, dx) + dy + r_y
        value = t.value(self.x, Px) + np.sum((self._P(d.P, self.x) + d.q) * dx, axis=1)
        return Tangent(dx, dy, dv, t.P, t.q, t.d, t.A, t.b, value)

    # Small things --------------------------------------------------------------------------------------------------------

    def _clean(self, flat: np.ndarray) -> np.ndarray:
        """Exactly zero for failed instances."""
        if len(self.bad) and len(flat) == self.count:
            flat = np.array(flat)
            flat[self.bad] = 0.0
        return flat


@dataclass(frozen=True)
class Tangent:
    """Tangents of the solution and of the data; None for data that do not move."""

    x: np.ndarray
    y: np.ndarray
    dv: np.ndarray
    P: np.ndarray | None
    q: np.ndarray | None
    d: np.ndarray | None
    A: np.ndarray | None
    b: np.ndarray | None
    objective: np.ndarray

    def value(self, x: np.ndarray, Px: np.ndarray) -> np.ndarray:
        """Derivative of the objective through the data alone: x'P'x / 2 + q'x + d."""
        out = 0.5 * np.sum(Px * x, axis=1)
        out = out if self.q is None else out + np.sum(self.q * x, axis=1)
        return out if self.d is None else out + self.d[:, 0]

    def raw(self, output: Any) -> np.ndarray:
        """Tangent of an output before its exponential, (count, size)."""
        if output.source == "value":
            return output.sign * self.objective[:, None]
        return output.pick(self.x if output.source == "primal" else self.y)

    def output(self, output: Any, value: np.ndarray) -> np.ndarray:
        """Tangent of an output."""
        return value * self.raw(output) if output.exponential else self.raw(output)


def _or_zero(a: np.ndarray | None) -> np.ndarray | float:
    return 0.0 if a is None else a


def _plus(a: np.ndarray | None, b: np.ndarray) -> np.ndarray:
    return b if a is None else a + b
