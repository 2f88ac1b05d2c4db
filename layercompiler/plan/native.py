"""A compiled problem solved inside of a framework: tensors never leave their device, and the framework's own tools compile the solve.

    parameters --affine maps, substitution--> dense Q p A b G h --array interior point--> x y v --substitution, outputs--> outputs

The maps before and after are ordinary array functions of the framework, which differentiates them by itself. The solve in the middle is
one function (Q, p, A, b, G, h) -> (x, y, v); its rules are here as well, in terms of two linear solves with the matrix of the residual
map, so that each framework only registers them:

    M (dx, dy, dv) = r,   M = [[Q, A', G'D], [A, 0, 0], [G, 0, D - I]],   D = Proj'(v),        and   M' t = g
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from layercompiler.programs.affine import AffineMap
from layercompiler.programs.cone import ConeProgram, OutputSpec
from layercompiler.programs.presolve import Elimination
from layercompiler.solvers.interior_point import Program, Settings, Symmetric, linear_solve, solve
from layercompiler.solvers.interior_point.complementarity import traced
from layercompiler.solvers.interior_point.engine import LARGEST
from layercompiler.solvers.interior_point.program import select, times, times_transposed
from layercompiler.status import Status

Arrays6 = tuple[Any, Any, Any, Any, Any, Any]


@dataclass(frozen=True)
class DenseMap:
    """An affine map from channels to a dense array of `shape`.

    Attributes:
        shape: Of one instance.
        constant: Flat value with all parameters zero.
        wholes: (channel, coefficient, symmetric): a channel as it is, or the symmetric part of a square one.
        gathers: (channel, index, coefficients): one entry of the channel, or none (index = size of the channel), per place.
        scatters: (channel, places, columns, coefficients), where several entries meet in one place.
    """

    shape: tuple[int, ...]
    constant: np.ndarray
    wholes: tuple[tuple[int, float, bool], ...]
    gathers: tuple[tuple[int, np.ndarray, np.ndarray | None], ...]
    scatters: tuple[tuple[int, np.ndarray, np.ndarray, np.ndarray], ...]

    @classmethod
    def of(cls, source: AffineMap, entries: np.ndarray, places: np.ndarray, shape: tuple[int, ...]) -> DenseMap:
        """The rows `entries` of a map, put at flat `places` of an array."""
        size = int(np.prod(shape))
        constant = np.zeros(size)
        np.add.at(constant, places, source.constant[entries])
        wholes, gathers, scatters = [], [], []
        for block in source.blocks:
            order = np.argsort(block.rows, kind="stable")
            left, right = (np.searchsorted(block.rows[order], entries, side) for side in ("left", "right"))
            counts = right - left
            if not counts.sum():
                continue
            inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            at = order[np.repeat(left, counts) + inside]
            put, cols, coefs = np.repeat(places, counts), block.cols[at], block.coefs[at]
            whole = _whole(block.size, shape, put, cols, coefs)
            if whole is not None:
                wholes.append((block.channel, *whole))
                continue
            if len(np.unique(put)) < len(put):
                scatters.append((block.channel, put, cols, coefs))
                continue
            index, weights = np.full(size, block.size), np.zeros(size)
            index[put], weights[put] = cols, coefs
            gathers.append((block.channel, index, None if np.all(coefs == 1.0) else weights))
        return cls(shape, constant, tuple(wholes), tuple(gathers), tuple(scatters))

    @property
    def uneven(self) -> bool:
        """Whether the symmetric part of a channel is taken."""
        return any(symmetric for _, _, symmetric in self.wholes)

    def __call__(self, xp: Any, thetas: list[Any], like: Any, uneven: bool = False) -> Any:
        """(1 or B, *shape) for channels (1 or B, size); with `uneven` an array of which the symmetric part counts."""
        out = None if not self.constant.any() else xp.new(self.constant, like)[None]
        for channel, coefficient, symmetric in self.wholes:
            part = thetas[channel]
            if symmetric and not uneven:
                square = part.reshape(part.shape[0], *self.shape)
                part = (0.5 * coefficient * (square + xp.matrix_transpose(square))).reshape(part.shape)
            else:
                part = part if coefficient == 1.0 else coefficient * part
            out = part if out is None else out + part
        for channel, index, weights in self.gathers:
            theta = thetas[channel]
            padded = xp.concat([theta, xp.zeros_like(theta[:, :1])], axis=1) if (index == theta.shape[1]).any() else theta
            part = xp.take(padded, xp.new(index, like), axis=1)
            part = part if weights is None else part * xp.new(weights, like)
            out = part if out is None else out + part
        for channel, put, cols, coefs in self.scatters:
            terms = xp.take(thetas[channel], xp.new(cols, like), axis=1) * xp.new(coefs, like)
            part = xp.segment_sum(terms.T, put, self.constant.size).T
            out = part if out is None else out + part
        out = xp.new(self.constant, like)[None] if out is None else out
        return out.reshape(out.shape[0], *self.shape)


def _whole(size: int, shape: tuple[int, ...], put: np.ndarray, cols: np.ndarray, coefs: np.ndarray) -> tuple[float, bool] | None:
    """(coefficient, whether the symmetric part is taken) where a map is that of a whole channel: gathers and scatters are slow."""
    if size != np.prod(shape):
        return None
    if len(put) == size and np.array_equal(put, cols) and np.all(coefs == coefs[0]) and len(np.unique(put)) == size:
        return float(coefs[0]), False
    n = shape[0]
    if len(shape) != 2 or shape[1] != n or len(put) != 2 * size - n:
        return None
    places = np.arange(size).reshape(n, n)
    expected = np.zeros((size, 2))
    expected[:, 0] = coefs[0] * np.where(np.eye(n, dtype=bool), 1.0, 0.5).ravel() if put[0] == cols[0] == 0 else np.nan
    expected[:, 1] = expected[:, 0]
    order = np.lexsort((cols, put))
    ends = np.unique(np.stack([np.tile(places.ravel(), 2), np.concatenate([places.ravel(), places.T.ravel()])], 1), axis=0)
    same = np.array_equal(np.stack([put[order], cols[order]], 1), ends) and np.array_equal(coefs[order], expected[ends[:, 0], 0])
    return (float(coefs[0]), True) if same else None


@dataclass(frozen=True)
class Native:
    """A cone program's way through the array interior point.

    Attributes:
        program: The program.
        elimination: Its defined variables.
        equalities: Equality rows that remain, and the cone of the others.
        cone: See `equalities`.
        on_error: "raise" or "flag".
        tolerance: Accepted residual.
        on_host: See `Settings`.
    """

    program: ConeProgram
    elimination: Elimination
    equalities: int
    cone: Symmetric
    on_error: str
    tolerance: float
    on_host: Callable[..., Any] | None = None

    @classmethod
    def of(cls, compiled: Any, options: Any = None) -> Native | None:
        """The native form of a compiled problem, None where it has cones for which there is none, or is too large to be dense."""
        structure = compiled.structure
        found = Symmetric.of(structure.cones)
        if found is None or structure.n + structure.m > LARGEST or any(c.log for c in compiled.program.channels):
            return None
        if compiled.on_error not in ("raise", "flag") or (options or compiled.options).smoothing:
            return None
        return cls(compiled.program, compiled.elimination, *found, compiled.on_error, (options or compiled.options).tolerance)

    # Numbers ---------------------------------------------------------------------------------------------------------------

    @cached_property
    def definite(self) -> bool:
        """Whether Q may be positive definite: its diagonal is full."""
        s = self.elimination.structure
        return len(np.unique(s.P_rows[s.P_rows == s.P_cols])) == s.n

    @cached_property
    def maps(self) -> dict[str, DenseMap]:
        """Maps to the dense arrays: those of the reduced program, and the substitution's E, P_kk, q_k, beta."""
        e, p, s, k = self.elimination, self.program, self.program.structure, self.equalities
        n, m = e.structure.n, e.structure.m
        new = np.full(s.n, -1)
        new[e.keep_x] = np.arange(n)
        rows, cols = new[s.P_rows[e.keep_P]], new[s.P_cols[e.keep_P]]
        off = rows != cols
        Q_entries, Q_places = np.concatenate([e.keep_P, e.keep_P[off]]), np.concatenate([rows * n + cols, (cols * n + rows)[off]])
        a_rows, a_cols = (e.structure.A_rows, e.structure.A_cols) if e.active else (s.A_rows, s.A_cols)
        equal = a_rows < k
        kept = e.keep_y
        held = np.flatnonzero(e.P_kk >= 0)
        whole = lambda entries, source: DenseMap.of(source, entries, np.arange(len(entries)), (len(entries),))  # noqa: E731
        return {
            "Q": DenseMap.of(p.P, Q_entries, Q_places, (n, n)),
            "p": whole(e.keep_x, p.q),
            "A": DenseMap.of(p.A, e.keep_A[equal], a_rows[equal] * n + a_cols[equal], (k, n)),
            "b": whole(kept[:k], p.b),
            "G": DenseMap.of(p.A, e.keep_A[~equal], (a_rows[~equal] - k) * n + a_cols[~equal], (m - k, n)),
            "h": whole(kept[k:], p.b),
            "d": whole(np.arange(1), p.d),
            "E": DenseMap.of(p.A, e.row_entries, e.rows.rows * n + e.rows.cols, (len(e.k), n)),
            "P_kk": DenseMap.of(p.P, e.P_kk[held], held, (len(e.k),)),
            "q_k": whole(e.k, p.q),
            "beta": whole(e.i, p.b),
        }

    def bind(self, xp: Any, thetas: list[Any], like: Any) -> tuple[Arrays6, dict[str, Any]]:
        """(Q, p, A, b, G, h) of channels (1 or B, size), and what `recover` needs besides; Q as `even` takes it."""
        names = ("Q", "p", "A", "b", "G", "h", "d", *(("E", "P_kk", "q_k", "beta") if self.elimination.active else ()))
        found = {name: self.maps[name](xp, thetas, like, uneven=name == "Q") for name in names}
        if self.elimination.active:
            c = xp.new(self.elimination.c, like)
            w = found["P_kk"] / c**2
            E, beta, linear = found["E"], found["beta"], found["q_k"] / c
            if w.shape[0] == 1 and E.shape[0] == 1:
                fill = xp.matmul((E[0] * w[0][:, None]).T, E[0])[None]
            else:
                fill = xp.matmul(xp.matrix_transpose(E * w[:, :, None]), E)
            found["Q"] = found["Q"] + fill
            pull = w * beta + linear
            found["p"] = found["p"] - times_transposed(xp, E, pull)
            found["d"] = found["d"] + xp.sum((0.5 * w * beta + linear) * beta, axis=1, keepdims=True)
        return tuple(found[name] for name in ("Q", "p", "A", "b", "G", "h")), found  # type: ignore[return-value]

    def even(self, xp: Any, Q: Any) -> Any:
        """The Q of a program, given that of `bind`: it is cheaper to even out where it is used, and gradients are even anyway."""
        return 0.5 * (Q + xp.matrix_transpose(Q)) if self.maps["Q"].uneven else Q

    def recover(self, xp: Any, data: Arrays6, found: dict[str, Any], x: Any, y: Any, v: Any, ok: Any, told: bool = True) -> list[Any]:
        """Outputs (B, *shape) from the point of the reduced program, with the optimal value if it is to be `told`; NaN where not `ok`."""
        e = self.elimination
        outputs = (*self.program.outputs, *((self.program.value,) if told else ()))
        value = None
        if any(o.source == "value" for o in outputs):
            value = 0.5 * xp.sum(x * times(xp, data[0], x), axis=1, keepdims=True) + xp.sum(data[1] * x, axis=1, keepdims=True)
            value = value + found["d"]
        dual = None
        if e.active or any(o.source == "dual" for o in outputs):
            dual = xp.concat([y, self.cone.traceable(xp, v)], axis=1)
        if e.active:
            c = xp.new(e.c, x)
            x_k = (found["beta"] - times(xp, found["E"], x)) / c
            y_k = (-found["q_k"] - found["P_kk"] * x_k) / c
            x = xp.take(xp.concat([x, x_k], axis=1), xp.new(np.argsort(np.concatenate([e.keep_x, e.k])), x), axis=1)
            dual = xp.take(xp.concat([dual, y_k], axis=1), xp.new(np.argsort(np.concatenate([e.keep_y, e.i])), x), axis=1)
        sources = {"primal": x, "dual": dual, "value": value}
        return [_output(xp, o, sources, ok) for o in outputs]

    # The solve -------------------------------------------------------------------------------------------------------------

    def settings(self, xp: Any, like: Any) -> Settings:
        """Settings for the device of an array."""
        return replace(Settings.of(xp, like, self.definite, self.tolerance), on_host=self.on_host)

    def solve(self, xp: Any, arrays: Arrays6) -> tuple[Any, ...]:
        """(x, y, v, status, residual, iterations, by_dual, *factors); points of instances that failed are zero."""
        found = solve(Program(xp, self.cone, self.even(xp, arrays[0]), *arrays[1:]), self.settings(xp, arrays[1]))
        x, y, v = found.point.arrays[:3]
        if not found.good:
            ok = found.status == int(Status.SOLVED)
            x, y, v = (select(xp, ok, a, xp.zeros_like(a)) for a in (x, y, v))
        return x, y, v, found.status, found.point.residual, found.iterations, found.by_dual, *found.factors

    def system(self, xp: Any, Q: Any, A: Any, G: Any, v: Any, right: Any, kept: Any, transposed: bool) -> tuple[Any, Any, Any]:
        """Solve M u = right, or M'u = right; kept = (status, by_dual, *factors) of the solve. Zero for instances that failed."""
        status, by_dual, *factors = kept
        entered = traced(_enter_transposed if transposed else _enter, xp, self.cone)(G, status, by_dual, *right)
        r_x, r_y, r_z, usable = entered
        program = Program(xp, self.cone, self.even(xp, Q), r_x, A, r_y, G, r_z)
        step = linear_solve(program, v, usable, tuple(factors), (r_x, r_y, r_z), self.settings(xp, v))
        return traced(_leave_transposed if transposed else _leave, xp, self.cone)(G, status, r_z, *step)  # type: ignore[return-value]

    # Its derivative, as linear and bilinear forms ----------------------------------------------------------------------------

    def right_side(self, xp: Any, point: Any, tangents: Any) -> tuple[Any, Any, Any]:
        """R of M (dx, dy, dv) = r along tangents of (Q, p, A, b, G, h); None for zero."""
        (x, y, v), (Q, p, A, b, G, h) = point, tangents
        z = self.cone.traceable(xp, v)
        r_x, r_y, r_z = xp.zeros_like(x), xp.zeros_like(y), xp.zeros_like(z)
        r_x = r_x if Q is None else r_x - 0.5 * (times(xp, Q, x) + times_transposed(xp, Q, x))
        r_x = r_x if p is None else r_x - p
        if A is not None:
            r_x, r_y = r_x - times_transposed(xp, A, y), r_y - times(xp, A, x)
        if G is not None:
            r_x, r_z = r_x - times_transposed(xp, G, z), r_z - times(xp, G, x)
        return r_x, (r_y if b is None else r_y + b), (r_z if h is None else r_z + h)

    def pull_right_side(self, xp: Any, point: Any, t: Any, like: Arrays6) -> tuple[Any, ...]:
        """The transpose: gradients of (Q, p, A, b, G, h), summed over the batch where `like` is shared."""
        (x, y, v), (t1, t2, t3) = point, t
        z = self.cone.traceable(xp, v)
        return (
            _outer(xp, like[0], -0.5, (t1, x), (x, t1)),
            -_sum_to(xp, t1, like[1]),
            _outer(xp, like[2], -1.0, (y, t1), (t2, x)),
            _sum_to(xp, t2, like[3]),
            _outer(xp, like[4], -1.0, (z, t1), (t3, x)),
            _sum_to(xp, t3, like[5]),
        )

    def matrix_along(self, xp: Any, G: Any, v: Any, u: Any, tangents: Any, transposed: bool) -> tuple[Any, Any, Any]:
        """M'[tangents] u (or its transpose) for tangents of (Q, A, G, v), None for zero."""
        (u1, u2, u3), (dQ, dA, dG, dv) = u, tangents
        D = self.cone.derivative(xp, v)
        bend = lambda a: self.cone.apply(xp, D, a)  # noqa: E731
        o1, o2, o3 = xp.zeros_like(u1), xp.zeros_like(u2), xp.zeros_like(u3)
        if dQ is not None:
            o1 = o1 + 0.5 * (times(xp, dQ, u1) + times_transposed(xp, dQ, u1))
        if dA is not None:
            o1, o2 = o1 + times_transposed(xp, dA, u2), o2 + times(xp, dA, u1)
        if dG is not None:
            o1 = o1 + times_transposed(xp, dG, u3 if transposed else bend(u3))
            o3 = o3 + (bend(times(xp, dG, u1)) if transposed else times(xp, dG, u1))
        if dv is not None and self.cone.groups:
            if transposed:
                o3 = o3 + self.cone.second(xp, v, times(xp, G, u1) + u3, dv)
            else:
                curved = self.cone.second(xp, v, u3, dv)
                o1, o3 = o1 + times_transposed(xp, G, curved), o3 + curved
        return o1, o2, o3

    def pull_matrix(self, xp: Any, G: Any, v: Any, left: Any, right: Any, like: Any) -> tuple[Any, Any, Any, Any]:
        """Gradients of <left, M right> for (Q, A, G, v)."""
        (l1, l2, l3), (r1, r2, r3) = left, right
        D = self.cone.derivative(xp, v)
        curved = self.cone.second(xp, v, r3, times(xp, G, l1) + l3)
        return (
            _outer(xp, like[0], 0.5, (l1, r1), (r1, l1)),
            _outer(xp, like[1], 1.0, (r2, l1), (l2, r1)),
            _outer(xp, like[2], 1.0, (self.cone.apply(xp, D, r3), l1), (l3, r1)),
            curved,
        )


def _enter(xp: Any, cone: Symmetric, G: Any, status: Any, by_dual: Any, *right: Any) -> tuple[Any, ...]:
    """The right-hand side in dz, zero for instances that failed, and whose factors are of use."""
    ok = status == int(Status.SOLVED)
    return *(select(xp, ok, r, xp.zeros_like(r)) for r in right), by_dual | ~ok


def _enter_transposed(xp: Any, cone: Symmetric, G: Any, *held: Any) -> tuple[Any, ...]:
    r_x, r_y, r_z, usable = _enter(xp, cone, G, *held)
    return r_x + times_transposed(xp, G, r_z), r_y, r_z, usable


def _leave(xp: Any, cone: Symmetric, G: Any, status: Any, r_z: Any, a: Any, b: Any, c: Any) -> tuple[Any, ...]:
    return _leave_transposed(xp, cone, G, status, r_z - times(xp, G, a), a, b, c)


def _leave_transposed(xp: Any, cone: Symmetric, G: Any, status: Any, r_z: Any, a: Any, b: Any, c: Any) -> tuple[Any, ...]:
    ok = status == int(Status.SOLVED)
    return tuple(select(xp, ok, u, xp.zeros_like(u)) for u in (a, b, c - r_z))


def _outer(xp: Any, like: Any, scale: float, *pairs: tuple[Any, Any]) -> Any:
    """Sum of outer products a b' times `scale`, over the batch too where `like` is shared."""
    if like.shape[0] == 1:
        return scale * sum(xp.matmul(a.T, b) for a, b in pairs)[None]  # type: ignore[index]
    (a, b), (c, d) = ((a if scale == 1.0 else scale * a, b) for a, b in pairs)
    return xp.axpy(c[:, :, None], d[:, None, :], a[:, :, None] * b[:, None, :])


def _sum_to(xp: Any, a: Any, like: Any) -> Any:
    return xp.sum(a, axis=0, keepdims=True) if like.shape[0] == 1 and a.shape[0] != 1 else a


def _output(xp: Any, output: OutputSpec, sources: dict[str, Any], ok: Any) -> Any:
    source = sources[output.source]
    if output.source == "value":
        flat = output.sign * source
    elif output._gather is not None:
        flat = xp.take(source, xp.new(output._gather, source), axis=1)
        flat = flat if output._gather_coefs is None else flat * xp.new(output._gather_coefs, source)
    else:
        terms = xp.take(source, xp.new(output.cols, source), axis=1) * xp.new(output.coefs, source)
        flat = xp.segment_sum(terms.T, output.rows, output.size).T
    flat = xp.exp(flat) if output.exponential else flat
    flat = select(xp, ok, flat, xp.full_like(flat, xp.nan))
    return flat.reshape(flat.shape[0], *output.shape)
