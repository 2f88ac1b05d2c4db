"""A least-squares program as functions of batched arrays: cost, linearization, exact Hessian, and the gradient as a function of theta."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from layercompiler import arrays
from layercompiler.programs.least_squares import Argument, Block, LeastSquaresProgram
from layercompiler.programs.robust import GemanMcClure
from layercompiler.solvers.least_squares.structure import Dense, Sparse, Structure

_REPEATED = 4e6  # numbers that may be repeated so that factors and instances are mapped over as one


class Point(NamedTuple):
    """The program at a point, for B instances.

    Attributes:
        cost: (B,) value of the objective.
        energy: (B,) squared length of the weighted residual that the gradient is made of.
        gradient: (B, n).
        entries: (B, entries) Gauss-Newton matrix, in the structure's order.
        diagonal: (B, n) of it.
    """

    cost: Any
    energy: Any
    gradient: Any
    entries: Any
    diagonal: Any


class Evaluation:
    """Functions of (values (B, ambient), theta, shared), written in one framework's arrays.

    theta holds one array per parameter, (B, *shape), or of its own shape where `shared` says that the batch shares it.
    """

    def __init__(self, structure: Structure, xp: Any) -> None:
        self.structure, self.program, self.xp = structure, structure.program, xp
        self.flat = all(v.manifold.name == "euclidean" for v in self.program.variables)
        self.size = int(self.program.ambient_offsets[-1])

    # Public functions ----------------------------------------------------------------------------------------------------

    def linearize(self, values: Any, theta: Sequence[Any], shared: Sequence[bool], widen: float = 1.0) -> Point:
        """Cost, gradient and Gauss-Newton matrix. `widen` multiplies the squared radius of graduated losses."""
        xp = self.xp
        parts = [self._linear(s, values, theta, shared, widen) for s in self.structure.blocks]
        cost, energy, gradient = (sum(p[i] for p in parts[1:]) + parts[0][i] for i in range(3))
        entries = self._merged(xp.concat([p[3] for p in parts], axis=-1))
        on = np.flatnonzero(self.structure.rows == self.structure.cols)
        diagonal = self._pick(entries, on)
        if len(on) < self.structure.n:
            diagonal = self._scatter(diagonal, self.structure.rows[on])
        return Point(cost, energy, gradient, entries, diagonal)

    def hessian(self, values: Any, theta: Sequence[Any], shared: Sequence[bool]) -> Any:
        """(B, entries) exact Hessian of the objective along tangents, in the structure's order."""
        return self._merged(self.xp.concat([self._second(s, values, theta, shared) for s in self.structure.blocks], axis=-1))

    def objective(self, values: Any, theta: Sequence[Any], shared: Sequence[bool]) -> Any:
        """(B,) the objective."""
        costs = []
        for s in self.structure.blocks:

            def one(*inputs: Any, b: Block = s.block) -> Any:
                return cost_of(self.xp, b, self._weighted(b, inputs), self.radius(b, inputs, 1.0), self.mass(b, inputs))

            cost = self._map(one, s.block, values, theta, shared)
            costs.append(cost if s.block.count is None else self.xp.sum(cost, axis=-1))
        return sum(costs[1:]) + costs[0]

    def residuals(self, values: Any, theta: Sequence[Any], shared: Sequence[bool]) -> list[Any]:
        """Weighted residuals of every block, (B, m) or (B, E, m)."""
        return [self._map(lambda *i, b=b: self._weighted(b, i), b, values, theta, shared) for b in self.program.blocks]

    def retract(self, values: Any, step: Any, xp: Any = None) -> Any:
        """Values moved by a step (B, n)."""
        return self._move(values, step, xp or self.xp, exact=True)

    def shift(self, values: Any, step: Any, xp: Any = None) -> Any:
        """Values moved along the tangent space, right to first order in the step and linear in it: for derivatives at step = 0."""
        return self._move(values, step, xp or self.xp, exact=False)

    def lift(self, values: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
        """Cotangents of the values (B, ambient) as cotangents of the unknown (B, n), on the host."""
        host, parts = arrays.get("numpy"), []
        for v, a in zip(self.program.variables, self.program.ambient_offsets, strict=False):
            g = cotangent[:, a : a + v.size]
            if v.manifold.name != "euclidean":
                x, g = (u.reshape(-1, v.elements, v.manifold.ambient) for u in (values[:, a : a + v.size], g))
                basis = [v.manifold.tangent(host, x, np.broadcast_to(e, (*x.shape[:2], len(e)))) for e in np.eye(v.manifold.dof)]
                g = np.stack([(g * b).sum(-1) for b in basis], axis=-1).reshape(-1, v.dof)
            parts.append(g)
        return np.concatenate(parts, axis=1)[:, self.structure.free]

    def split(self, values: Any) -> tuple[Any, ...]:
        """Values (B, ambient) as one array (B, *shape) per variable."""
        starts = self.program.ambient_offsets
        return tuple(
            self.xp.reshape(values[..., a:b], (*values.shape[:-1], *v.shape))
            for v, a, b in zip(self.program.variables, starts[:-1], starts[1:], strict=True)
        )

    # Blocks --------------------------------------------------------------------------------------------------------------

    def _linear(self, s: Dense | Sparse, values: Any, theta: Any, shared: Any, widen: float) -> tuple[Any, ...]:
        xp, block = self.xp, s.block

        def one(*inputs: Any) -> Any:
            r, J = self._dense(s, inputs) if isinstance(s, Dense) else self._colored(s, inputs)
            c = self.radius(block, inputs, widen)
            cost = cost_of(xp, block, r, c, self.mass(block, inputs))
            root = root_of(xp, block, r, c, self.mass(block, inputs))
            if root is not None:
                r = root * r
                J = J * (
                    self._pick(root, s.rows) if isinstance(s, Sparse) and block.separable else root[:, None] if block.separable else root
                )
            return cost, r, J

        cost, r, J = self._map(one, block, values, theta, shared)
        energy = xp.sum(r * r, axis=-1)
        if block.count is not None:
            cost, energy = xp.sum(cost, axis=-1), xp.sum(energy, axis=-1)
        if isinstance(s, Sparse):
            gradient = self._scatter(J * self._pick(r, s.rows), s.cols)
            entries = self._scatter(self._pick(J, s.first) * self._pick(J, s.second), s.slot, len(s.left))
            return cost, energy, gradient, entries
        gradient = xp.sum(J * r[..., None], axis=-2)
        if s.block.dim > 6:
            H = xp.matmul(xp.matrix_transpose(J), J)
            entries = self._pick(xp.reshape(H, (*H.shape[:-2], -1)), s.first * H.shape[-1] + s.second)
        else:
            entries = xp.sum(self._pick(J, s.first) * self._pick(J, s.second), axis=-2)
        return cost, energy, self._spread(s, gradient), self._kept(s, entries)

    def _dense(self, s: Dense, inputs: Any) -> tuple[Any, Any]:
        """Weighted residual (m,) and its Jacobian (m, k) of one factor."""
        xp, block = self.xp, s.block
        if block.jacobian is not None:
            variables, arguments, extra = self.cut(block, inputs)
            J = xp.concat([xp.reshape(j, (block.dim, -1)) for j in block.jacobian(xp, *variables, *arguments)], axis=-1)
            r = block.residual(xp, *variables, *arguments)
            return self.weigh(block, r, extra), self.weigh(block, J, extra)
        k = s.cols.shape[1]
        at, zero = self._local(block, inputs), self._zero(inputs, k)
        if k <= 2 * block.dim:
            values, columns = self._columns(at, zero, xp.eye_like(zero, k))
            return values, xp.matrix_transpose(columns)
        r, pull = xp.vjp(at, zero)
        return r, xp.vmap(lambda c: pull(c)[0])(xp.eye_like(r, block.dim))

    def _columns(self, at: Callable[[Any], Any], zero: Any, seeds: Any) -> tuple[Any, Any]:
        """at(zero), and its derivatives along the seeds (k, n): (k, m)."""
        values, columns = self.xp.vmap(lambda t: self.xp.jvp(at, (zero,), (t,)))(seeds)
        return values[0], columns

    def _colored(self, s: Sparse, inputs: Any) -> tuple[Any, Any]:
        """Weighted residual (m,) and the nonzeros of its Jacobian."""
        xp = self.xp
        at, zero = self._local(s.block, inputs), self._zero(inputs, len(s.colors))
        seeds = xp.new(np.equal.outer(np.arange(s.colors.max() + 1), s.colors).astype(float), zero) * xp.ones_like(zero)
        values, columns = self._columns(at, zero, seeds)
        return values, self._pick(xp.reshape(columns, (-1,)), s.colors[s.local] * s.block.dim + s.rows)

    def _second(self, s: Dense | Sparse, values: Any, theta: Any, shared: Any) -> Any:
        xp, block = self.xp, s.block

        def one(*inputs: Any) -> Any:
            variables, rest = inputs[: len(block.on)], inputs[len(block.on) :]

            # The derivative along one tangent of the gradient along all: at a stationary point the Hessian of every chart.
            def gradient(d: Any) -> Any:
                at = self._local(block, (*self._shifted(block, variables, d), *rest))
                return xp.grad(lambda e: cost_of(xp, block, at(e), self.radius(block, inputs, 1.0), self.mass(block, inputs)))(
                    xp.zeros_like(d)
                )

            zero = self._zero(inputs, s.cols.shape[1] if isinstance(s, Dense) else len(s.colors))
            if isinstance(s, Dense):
                H = xp.vmap(lambda t: xp.jvp(gradient, (zero,), (t,))[1])(xp.eye_like(zero, s.cols.shape[1]))
                return self._pick(xp.reshape(H, (-1,)), s.first * H.shape[-1] + s.second)
            seeds = xp.new(np.equal.outer(np.arange(s.hessian_colors.max() + 1), s.hessian_colors).astype(float), zero) * xp.ones_like(zero)
            H = xp.vmap(lambda t: xp.jvp(gradient, (zero,), (t,))[1])(seeds)
            return self._pick(xp.reshape(H, (-1,)), s.hessian_colors[s.right] * len(s.colors) + s.left)

        entries = self._map(one, block, values, theta, shared)
        return entries if isinstance(s, Sparse) else self._kept(s, entries)

    # One factor ----------------------------------------------------------------------------------------------------------

    def _local(self, block: Block, inputs: Any) -> Callable[[Any], Any]:
        """The weighted residual as a function of the factor's own tangent."""
        variables, arguments, extra = self.cut(block, inputs)

        def at(tangent: Any) -> Any:
            return self.weigh(block, block.residual(self.xp, *self._shifted(block, variables, tangent), *arguments), extra)

        return at

    def _shifted(self, block: Block, variables: Sequence[Any], tangent: Any) -> list[Any]:
        """One factor's variables moved along its own tangent, to first order."""
        moved, start = [], 0
        for position, index, x in zip(block.on, block.index, variables, strict=True):
            spec = self.program.variables[position]
            manifold, count = spec.manifold, spec.elements if index is None else 1
            part = tangent[start : start + count * manifold.dof]
            start += count * manifold.dof
            shape = x.shape if manifold.name == "euclidean" else (*x.shape[:-1], manifold.dof)
            moved.append(x + manifold.tangent(self.xp, x, self.xp.reshape(part, shape)))
        return moved

    def _weighted(self, block: Block, inputs: Any) -> Any:
        variables, arguments, extra = self.cut(block, inputs)
        return self.weigh(block, block.residual(self.xp, *variables, *arguments), extra)

    def weigh(self, block: Block, r: Any, extra: Sequence[Any]) -> Any:
        """W r, or W J."""
        if block.weight is None:
            return r
        W = extra[0]
        if block.weight.kind == "full":
            return self.xp.matmul(W, r)
        return W * r if block.weight.kind == "scale" or r.ndim == 1 else W[:, None] * r

    def radius(self, block: Block, inputs: Any, widen: float) -> Any:
        """The squared radius of the robust loss."""
        if block.radius is None:
            return None
        c = inputs[-1] * inputs[-1]
        return c * widen if isinstance(block.robust, GemanMcClure) and block.robust.graduated else c

    def mass(self, block: Block, inputs: Any) -> Any:
        """What multiplies the losses of the rows, or None."""
        return None if block.mass is None else inputs[-1 if block.radius is None else -2]

    def cut(self, block: Block, inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        """Inputs as (variables, arguments, weight and radius)."""
        a, b = len(block.on), len(block.on) + len(block.arguments)
        return inputs[:a], inputs[a:b], inputs[b:]

    def _zero(self, inputs: Sequence[Any], k: int) -> Any:
        """A tangent of zeros that is of the same kind as the variables (mapped where they are)."""
        x = self.xp.reshape(inputs[0], (-1,))
        return self.xp.zeros_like(self.xp.broadcast_to(x[:1], (k,)))

    # Batches -------------------------------------------------------------------------------------------------------------

    def _map(self, one: Callable[..., Any], block: Block, values: Any, theta: Sequence[Any], shared: Sequence[bool]) -> Any:
        """`one` of every factor of every instance."""
        inputs, batched, mapped = [], [], []
        starts = self.program.ambient_offsets
        for position, index in zip(block.on, block.index, strict=True):
            spec = self.program.variables[position]
            x = values[:, starts[position] : starts[position + 1]]
            if index is None:
                x = self.xp.reshape(x, (-1, *spec.shape))
            else:
                x = self.xp.take(
                    self.xp.reshape(x, (-1, spec.elements, *spec.element_shape)), self.xp.new(np.asarray(index), values), axis=1
                )
            inputs.append(x)
            batched.append(0)
            mapped.append(None if index is None else 0)
        for argument in (*block.arguments, *block.extra):
            inputs.append(self._argument(argument, values, theta))
            batched.append(None if argument.parameter is None or shared[argument.parameter] else 0)
            mapped.append(0 if argument.mapped else None)
        if block.count is None:
            return self.xp.vmap(one, tuple(batched))(*inputs)
        return self._factors(one, block.count, int(values.shape[0]), inputs, batched, mapped)

    def _factors(self, one: Any, count: int, batch: int, inputs: list[Any], batched: list[Any], mapped: list[Any]) -> Any:
        """`one` of every factor of every instance, by one map where no large argument would be repeated for it."""
        xp = self.xp
        large = sum(math.prod(x.shape[1:]) for x, b, m in zip(inputs, batched, mapped, strict=True) if b == 0 and m is None)
        if large * count * batch > _REPEATED:
            if 0 not in mapped:  # factors that all read the same
                inputs, batched, mapped = [*inputs, xp.new(np.zeros(count))], [*batched, None], [*mapped, 0]
                return self._factors(lambda *a: one(*a[:-1]), count, batch, inputs, batched, mapped)
            return xp.vmap(xp.vmap(one, tuple(mapped)), tuple(batched))(*inputs)
        flat, axes = [], []
        for x, b, m in zip(inputs, batched, mapped, strict=True):
            if b is None and m is None:
                flat.append(x)
                axes.append(None)
                continue
            one_shape = tuple(x.shape)[(b == 0) + (m == 0) :]
            x = xp.reshape(x, (batch if b == 0 else 1, count if m == 0 else 1, *one_shape))
            flat.append(xp.reshape(xp.broadcast_to(x, (batch, count, *one_shape)), (batch * count, *one_shape)))
            axes.append(0)
        found = xp.vmap(one, tuple(axes))(*flat)
        whole = found if isinstance(found, tuple) else (found,)
        shaped = tuple(xp.reshape(f, (batch, count, *tuple(f.shape)[1:])) for f in whole)
        return shaped if isinstance(found, tuple) else shaped[0]

    def _argument(self, argument: Argument, values: Any, theta: Sequence[Any]) -> Any:
        if argument.parameter is not None:
            return theta[argument.parameter]
        return self.xp.new(np.asarray(argument.value), values)

    def _pick(self, x: Any, index: np.ndarray) -> Any:
        """Entries of the last axis."""
        return self.xp.take(x, self.xp.new(index, x), axis=-1)

    def _spread(self, s: Dense, local: Any) -> Any:
        """(B, n) sums of per-factor columns (B, E, k) or (B, k)."""
        if s.whole:
            return local
        flat = self.xp.reshape(local, (local.shape[0], -1))
        cols = s.cols.reshape(-1)
        if (cols < 0).any():
            keep = np.flatnonzero(cols >= 0)
            flat, cols = self._pick(flat, keep), cols[keep]
        return self._scatter(flat, cols)

    def _scatter(self, flat: Any, index: np.ndarray, count: int | None = None) -> Any:
        """(B, count) sums of (B, k) by index (k,)."""
        moved = self.xp.permute_dims(flat, (1, 0))
        return self.xp.permute_dims(self.xp.segment_sum(moved, index, self.structure.n if count is None else count), (1, 0))

    def _kept(self, s: Dense, entries: Any) -> Any:
        flat = self.xp.reshape(entries, (entries.shape[0], -1))
        return flat if s.kept is None else self._pick(flat, s.kept)

    def _merged(self, entries: Any) -> Any:
        merge = self.structure.merge
        return entries if merge is None else self._scatter(entries, merge, len(self.structure.rows))

    def _move(self, values: Any, step: Any, xp: Any, exact: bool) -> Any:
        program, structure = self.program, self.structure
        if structure.n != program.dof:
            step = xp.concat([step, xp.zeros_like(step[:, :1])], axis=1)
            where = np.full(program.dof, structure.n)
            where[structure.free] = np.arange(structure.n)
            step = xp.take(step, xp.new(where), axis=1)
        if self.flat:
            return values + step
        parts = []
        for v, a, d in zip(program.variables, program.ambient_offsets, program.offsets, strict=False):
            x, t = values[:, a : a + v.size], step[:, d : d + v.dof]
            if v.manifold.name == "euclidean":
                parts.append(x + t)
                continue
            x, t = (xp.reshape(u, (-1, v.elements, k)) for u, k in ((x, v.manifold.ambient), (t, v.manifold.dof)))
            y = v.manifold.normalize(xp, v.manifold.retract(xp, x, t)) if exact else x + v.manifold.tangent(xp, x, t)
            parts.append(xp.reshape(y, (-1, v.size)))
        return xp.concat(parts, axis=1) if len(parts) > 1 else parts[0]


def cost_of(xp: Any, block: Block, r: Any, c: Any, mass: Any = None) -> Any:
    """Half the (robust) square of a weighted residual."""
    if block.separable:
        loss = r * r if block.robust is None else block.robust.rho(xp, r * r, c)
        return xp.sum(loss if mass is None else mass * loss) / 2
    square = xp.sum(r * r)
    return (square if block.robust is None else block.robust.rho(xp, square, c)) / 2


def root_of(xp: Any, block: Block, r: Any, c: Any, mass: Any = None) -> Any:
    """What multiplies residual and Jacobian in a Gauss-Newton step, a number or (m,) where separable; None for 1."""
    if block.robust is None:
        return None if mass is None else xp.sqrt(mass)
    slope = block.robust.slope(xp, r * r if block.separable else xp.sum(r * r), c)
    return xp.sqrt(slope if mass is None else mass * slope)


def stages(program: LeastSquaresProgram) -> list[float]:
    """Factors of the squared radius of graduated losses, falling to 1."""
    graded = [b.robust for b in program.blocks if isinstance(b.robust, GemanMcClure) and b.robust.graduated]
    if not graded:
        return [1.0]
    loss = max(graded, key=lambda g: g.start)
    out, factor = [], float(loss.start)  # TensorFlow does not mix whole numbers with others
    while factor > 1:
        out.append(factor)
        factor /= loss.factor
    return [*out, 1.0]


__all__ = ["Evaluation", "Point", "cost_of", "root_of", "stages"]
