"""Programs written as matrices: arguments go to the kernel as they are given, and gradients come back in that form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from layercompiler.derivatives.dense import DenseLinearization
from layercompiler.derivatives.residual_map import Point
from layercompiler.kernels import DenseQP, DenseSolution
from layercompiler.plan.evaluation import ACCURATE, Bound, Evaluation
from layercompiler.plan.parts import Parts
from layercompiler.problems.qp import QP, compile_qp
from layercompiler.programs.cone import ConeProgram
from layercompiler.status import Info

ORDER = ("Q", "p", "A", "b", "G", "h")  # of the kernel's operands


@dataclass(frozen=True)
class Call:
    """The arguments of one call as the kernel's operands: (1 or count, ...) each."""

    batch: tuple[int, ...]
    count: int
    leads: tuple[tuple[int, ...], ...]  # the batch, or nothing for what it shares
    operands: list[Any]


class Matrices:
    """Which operand of the kernel is which parameter, and the numbers of the others."""

    def __init__(self, program: ConeProgram, qp: QP) -> None:
        self.kernel = DenseQP(qp.n, qp.equalities, qp.inequalities)
        n, m, p = qp.n, qp.inequalities, qp.equalities
        shapes = {"Q": (n, n), "p": (n,), "G": (m, n), "h": (m,), "A": (p, n), "b": (p,)}
        self.names = [k.name for k in program.parameters]
        self.shapes = [k.shape for k in program.parameters]
        self.place = [ORDER.index(name) for name in self.names]
        self.constants = [qp.values.get(k, np.zeros(shapes[k]))[None] if k not in self.names else None for k in ORDER]

    @cached_property
    def single(self) -> DenseQP:
        """The kernel in float32."""
        return DenseQP(self.kernel.n, self.kernel.equalities, self.kernel.inequalities, dtype=np.float32)

    @classmethod
    def of(cls, program: ConeProgram) -> Matrices | None:
        """Of a program that `layercompiler.QP` made, or None: what a file says is made again and compared."""
        if program.kind != "QP":
            return None
        s, names = program.structure, [k.name for k in program.parameters]
        counts = {cone.name: count for cone, count in s.cones.blocks}
        n, p, m = s.n, counts.get("zero", 0), counts.get("nonnegative", 0)
        Q = np.zeros((n, n))
        Q[s.P_rows, s.P_cols] = Q[s.P_cols, s.P_rows] = program.P.constant
        A = program.A.constant
        if len(A) != (p + m) * n:
            return None
        qp = QP(n, m, p)
        qp.values = {"Q": Q, "p": program.q.constant, "A": A[: p * n].reshape(p, n), "G": A[p * n :].reshape(m, n)}
        qp.values |= {"b": program.b.constant[:p], "h": program.b.constant[p:]}
        again = compile_qp(qp, names, [o.name for o in program.outputs])
        return cls(program, qp) if _same(again, program) else None

    def read(self, arrays: Sequence[Any]) -> Call | None:
        """The operands, where the arguments are float64 arrays, each with the whole batch or without one; else None."""
        leads = []
        if len(arrays) != len(self.shapes):
            return None
        for a, shape in zip(arrays, self.shapes, strict=True):
            if type(a) is not np.ndarray or a.dtype != np.float64:
                return None
            k = a.ndim - len(shape)
            if k < 0 or a.shape[k:] != shape:
                return None
            leads.append(a.shape[:k])
        batch = max(leads, key=lambda lead: (len(lead), math.prod(lead)), default=())
        count = math.prod(batch)
        own = [lead == batch for lead in leads]
        if count == 0 or any(not o and math.prod(lead) != 1 for o, lead in zip(own, leads, strict=True)):
            return None
        operands = list(self.constants)
        for a, o, shape, place in zip(arrays, own, self.shapes, self.place, strict=True):
            operands[place] = a.reshape(count if o else 1, *shape)
        return Call(batch, count, tuple(batch if o else () for o in own), operands)


def _same(a: ConeProgram, b: ConeProgram) -> bool:
    """Whether two programs have the same maps, patterns and outputs."""

    def parts(k: ConeProgram) -> list[Any]:
        blocks = [x for m in k.maps for x in m.blocks]
        s = k.structure
        out = [s.P_rows, s.P_cols, s.A_rows, s.A_cols, *(m.constant for m in k.maps)]
        out += [v for x in blocks for v in (x.rows, x.cols, x.coefs)] + [v for o in k.outputs for v in (o.rows, o.cols, o.coefs)]
        return out

    def names(k: ConeProgram) -> Any:
        blocks = [[x.channel for x in m.blocks] for m in k.maps]
        return (
            blocks,
            k.channels,
            [(p.name, p.shape) for p in k.parameters],
            [(o.name, o.shape, o.source, o.exponential, o.sign) for o in k.outputs],
        )

    first, second = parts(a), parts(b)
    return names(a) == names(b) and len(first) == len(second) and all(map(np.array_equal, first, second))


class MatrixEvaluation(Evaluation):
    """A solved batch of programs written as matrices, every instance solved; what is beyond first order is made when it is asked for."""

    fresh = True  # what is returned is the caller's to keep and to write to

    def __init__(
        self,
        problem: Parts,
        matrices: Matrices,
        arrays: Sequence[np.ndarray],
        call: Call,
        found: DenseSolution,
        info: Info,
        threads: int,
    ) -> None:
        self.problem, self.info, self.batch, self.count = problem, info, call.batch, call.count
        self._matrices, self._arrays, self._call, self._found, self._threads = matrices, arrays, call, found, threads
        self.bad = _NONE
        self.x, self.y = found.x, found.y
        self.z = np.concatenate([found.x, found.v], axis=1).reshape((*call.batch, -1))
        p = matrices.kernel.equalities
        parts = {"x": found.x, "y": found.y[:, :p], "z": found.y[:, p:]}
        self._flat = tuple(np.array(parts[o.name]) if o.name in parts else self._read(o) for o in problem.outputs)
        self.outputs = tuple(self._shaped(f, o.shape) for f, o in zip(self._flat, problem.outputs, strict=True))

    def _objective(self) -> np.ndarray:
        Q, p = self._call.operands[:2]
        return np.sum(self.x * (0.5 * np.matmul(Q, self.x[:, :, None])[:, :, 0] + p), axis=1)

    @cached_property
    def bound(self) -> Bound:  # type: ignore[override]
        """See `Evaluation`."""
        return Bound.of(self.problem, self.problem.reader.read(self._arrays, False, False))

    @cached_property
    def point(self) -> Point:  # type: ignore[override]
        """See `Evaluation`."""
        f, none = self._found, np.zeros((self.count, 0))
        return Point(self.problem.structure.cones, f.x, f.v, f.y, none, none, f.norm)

    @cached_property
    def linear(self) -> DenseLinearization:  # type: ignore[override]
        """See `Evaluation`."""
        f = self._found
        return DenseLinearization(self.problem.map, self.bound.scaled, self.point, f.factors, f.reach, self._threads)

    def vjp(self, cotangents: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """See `Evaluation.vjp`."""
        matrices, call, found = self._matrices, self._call, self._found
        n, p, m = matrices.kernel.n, matrices.kernel.equalities, matrices.kernel.inequalities
        gx, gy = None, None
        for o, flat in zip(self.problem.outputs, self._cotangents(cotangents), strict=True):
            if flat is None:
                continue
            if o.name == "value":
                return super().vjp(cotangents)
            if o.name == "x":
                gx = flat if gx is None else gx + flat
            else:
                gy = np.zeros((self.count, p + m)) if gy is None else gy
                gy[:, slice(0, p) if o.name == "y" else slice(p, None)] += flat
        gx = np.zeros((self.count, n)) if gx is None else gx
        gy = np.zeros((self.count, p + m)) if gy is None else gy
        single = self.count == 1
        own = [False] * 6
        for place, lead in zip(matrices.place, call.leads, strict=True):
            own[place] = bool(lead) or single
        u, t, residual, gradients = found.factors.gradients(gx, gy, found.x, found.y, own, threads=self._threads)
        if not (residual <= ACCURATE).all():
            return super().vjp(cotangents)
        out = []
        for place, array in zip(matrices.place, self._arrays, strict=True):
            g = gradients[place]
            if g is None:  # shared by the batch: the sum of outer products is one product of matrices
                g = summed(ORDER[place], u, t, found.x, found.y, p)
            out.append(g.reshape(array.shape))
        return tuple(out)


_NONE = np.zeros(0, np.intp)


def summed(name: str, u: np.ndarray, t: np.ndarray, x: np.ndarray, y: np.ndarray, p: int) -> np.ndarray:
    """Gradient of an operand that the batch shares."""
    rows = slice(0, p) if name in "Ab" else slice(p, None)
    match name:
        case "Q":
            product = u.T @ x
            return -0.5 * (product + product.T)
        case "p":
            return -u.sum(axis=0)
        case "A" | "G":
            return -(y[:, rows].T @ u + t[:, rows].T @ x)
        case _:
            return t[:, rows].sum(axis=0)
