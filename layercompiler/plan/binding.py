"""The compiled way from parameters to the data of a program and back; `evaluation` has the same in arrays, for builds without kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler import kernels
from layercompiler.derivatives.data_gradient import Adjoint
from layercompiler.derivatives.residual_map import Point
from layercompiler.derivatives.scaling import Scaling
from layercompiler.programs.affine import AffineMap
from layercompiler.programs.cone import ConeProgram, Data
from layercompiler.programs.presolve import Elimination, Reduction, Unreduced

_ROOMS = 64  # layouts that are remembered


class Binding:
    """Maps of one program, each one pass over a batch: parameters to the reduced data, points to outputs, and their transposes.

    Args:
        program: The program.
        elimination: What the presolve substitutes.
    """

    def __init__(self, program: ConeProgram, elimination: Elimination) -> None:
        s = program.structure
        self.elimination, self.sizes = elimination, [c.size for c in program.channels]
        parts = _parts(program, elimination)
        entries = [kernels.Entries.of([(b.channel, b.rows, b.cols, b.coefs) for b in m.blocks]) for m in parts]
        self.data = kernels.Gather(self.sizes, [m.constant for m in parts], entries)
        self.substitution = kernels.Substitution(_layout(elimination)) if elimination.active else None
        # Optimal values are no part of the point.
        self.points = [k for k, o in enumerate(program.outputs) if o.source != "value"]
        self.values = [k for k, o in enumerate(program.outputs) if o.source == "value"]
        self.exponential = any(o.exponential for o in program.outputs)
        outputs = [program.outputs[k] for k in self.points]
        of = {"primal": 0, "dual": 1}
        picks = [kernels.Entries.of([(of[o.source], o.rows, o.cols, o.coefs)]) for o in outputs]
        self.picks = kernels.Gather((s.n, s.m), [np.zeros(o.size) for o in outputs], picks)
        spreads = [[(k, o.cols, o.rows, o.coefs) for k, o in enumerate(outputs) if of[o.source] == part] for part in (0, 1)]
        self.spreads = kernels.Gather(
            [o.size for o in outputs], [np.zeros(s.n), np.zeros(s.m)], [kernels.Entries.of(blocks) for blocks in spreads]
        )
        self.full = s.n, s.m
        self._no_flags = kernels.flags([False] * (len(outputs) or 1))
        self._rooms: dict[tuple[tuple[bool, ...], int], _Room] = {}
        self.pullback = kernels.Pullback(s.n, s.m, self.sizes, [_gradients(program, k) for k in range(len(self.sizes))])

    def bind(self, thetas: Sequence[np.ndarray], count: int, threads: int, scaling: Any = None) -> tuple[Reduction, np.ndarray | None]:
        """The substitution for the channel values of one batch, and where its data are far from unit size, if `scaling` is to say so."""
        held = [kernels.contiguous(t) for t in thetas]
        wide = tuple([len(t) > 1 for t in held])
        room = self._rooms.get((wide, count)) or self._room(wide, count)
        memory, active = np.empty(room.total), self.substitution
        base = kernels.address(memory)
        places = [base + 8 * at for at, _, _ in room.shapes]
        P, q, d, w = places[9:] if active else (*places[:3], 0)
        parts, scaled = kernels.longs(places), kernels.longs([P, q, places[3], places[4]])
        rough = None if scaling is None else np.empty(count, np.bool_)
        kernels.route(
            *("bind", count, threads, self.data.handle, active.handle if active else 0, scaling.handle if scaling else 0),
            *(kernels.pointers(held), kernels.strides(held), parts, room.shared, *room.counts, P, q, d, w),
            *(room.operands, scaled, room.scaled, 0 if rough is None else rough),
        )
        views = [memory[at : at + rows * width].reshape(rows, width) for at, rows, width in room.shapes]
        if active is None:
            return Unreduced(self.elimination, Data(*views)), rough
        _, _, _, A, b, entries, beta, linear, diagonal, P_new, q_new, d_new, weight = views
        weights = kernels.Weights(entries, weight, diagonal, beta, linear)
        return CompiledReduction(self.elimination, active, Data(P_new, q_new, d_new, A, b), weights, threads), rough

    def _room(self, wide: tuple[bool, ...], count: int) -> _Room:
        """How one batch is laid out, for which channels vary within it."""
        own = [any([wide[k] for k in reads]) for reads in self.data.reads]
        own[1] = own[1] or self.substitution is None  # q tells the batch
        rows = [count if o else 1 for o in own]
        shapes = list(zip(rows, self.data.sizes, strict=True))
        counts, shown = (1, 1, 1), shapes[:5]
        if self.substitution is not None:
            counts = (max(rows[0], rows[5], rows[8]), rows[8], max(rows[2], *rows[6:9]))
            P, n, k = self.substitution.layout.P_size, self.substitution.layout.size[0], self.data.sizes[8]
            shapes += [(counts[0], P), (count, n), (counts[2], 1), (rows[8], k)]
            shown = [shapes[9], shapes[10], shapes[11], *shapes[3:5]]
        at = np.cumsum([0, *((r * w + 7) // 8 * 8 for r, w in shapes)]).tolist()
        step = [w if r > 1 else 0 for r, w in shapes]
        operands = [step[k] for k in ((0, 1, 2, 5, 6, 7, 8) if self.substitution is not None else ())]
        scaled = [shown[k][1] if shown[k][0] > 1 else 0 for k in (0, 1, 3, 4)]
        made = _Room(
            [(a, r, w) for a, (r, w) in zip(at, shapes, strict=False)],
            at[-1],
            kernels.flags([not o for o in own]),
            counts,
            kernels.longs(operands),
            kernels.longs(scaled),
        )
        if len(self._rooms) > _ROOMS:
            self._rooms.clear()
        self._rooms[wide, count] = made
        return made

    def recover(
        self, point: Point, reduction: Reduction, scaling: Scaling | None, threads: int
    ) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """x and y of the whole program, and flat outputs (B, size) before their exponentials, by their place among all."""
        x, y = kernels.contiguous(point.x), kernels.contiguous(point.y)
        count, (full_n, full_m) = len(x), self.full
        full_x, full_y = np.empty((count, full_n)), np.empty((count, full_m))
        out = [np.empty((count, size)) for size in self.picks.sizes]
        back = reduction.back if isinstance(reduction, CompiledReduction) else (0,) * 8
        kernels.route(
            *("recover", count, threads, self.substitution.handle if self.substitution else 0, self.picks.handle),
            *(x.shape[1], y.shape[1], full_n, full_m, x, y, *((0, 0) if scaling is None else (scaling.x, scaling.y)), *back),
            *(full_x, full_y, kernels.pointers(out), self._no_flags),
        )
        return full_x, full_y, dict(zip(self.points, out, strict=True))

    def reaches(self, cotangents: Sequence[np.ndarray | None]) -> bool:
        """Whether `adjoint` serves these cotangents: none is that of an optimal value."""
        return not self.values or all([cotangents[k] is None for k in self.values])

    def adjoint(
        self,
        cotangents: Sequence[np.ndarray | None],
        point: tuple[np.ndarray, np.ndarray],
        bound: Any,
        factors: tuple[int, ...],
        threads: int,
    ) -> tuple[list[np.ndarray | None], np.ndarray]:
        """Gradients of the channels, and the relative residual of the linear system (B,), by which the caller judges them.

        Args:
            cotangents: (B, size) per output, None for zero; zero for the optimal value.
            point: x and y of the whole program.
            bound: The numbers of the call.
            factors: Those of the linear system, see `route` of a linearization.
            threads: Threads that share the batch.
        """
        held = [None if (a := cotangents[k]) is None else kernels.contiguous(a) for k in self.points]
        reduction, scaling, count = bound.reduction, bound.scaling, len(point[0])
        shared = [len(r) == 1 for r in bound.chain.raw]
        out: list[np.ndarray | None] = [np.empty((1 if s else count, size)) for s, size in zip(shared, self.sizes, strict=True)]
        residual, s = np.empty(count), self.elimination.structure
        scales = (0,) * 4 if scaling is None else (scaling.x, scaling.y, scaling.r_x, scaling.r_y)
        kernels.route(
            *("adjoint", count, threads, self.spreads.handle, self.substitution.handle if self.substitution else 0, self.pullback.handle),
            *(*factors, s.n, s.m, *self.full, *point, *scales, *(reduction.way if self.substitution else (0,) * 6)),
            *(kernels.pointers(held), kernels.strides(held), kernels.pointers(out), kernels.flags(shared), residual),
        )
        return out, residual

    def spread(self, cotangents: Sequence[np.ndarray | None], count: int, threads: int) -> list[np.ndarray]:
        """Cotangents of x and y from those of the outputs."""
        return self.spreads([cotangents[k] for k in self.points], count, threads, whole=True)

    def pull(self, adjoint: Adjoint, shared: Sequence[bool], bad: np.ndarray, threads: int) -> list[np.ndarray | None]:
        """Gradients of the channels; zero for the instances `bad`."""
        skip = None
        if len(bad):
            skip = np.zeros(len(adjoint.x), bool)
            skip[bad] = True
        point = adjoint.x, adjoint.y, adjoint.u, adjoint.t
        return [*self.pullback(*point, value=adjoint.value, skip=skip, shared=shared, threads=threads)]


@dataclass(frozen=True)
class _Room:
    """Where the data of one batch lie in one piece of memory.

    Attributes:
        shapes: Offset, rows and width of each part; `total` numbers in all.
        shared: Flags of the parts that the batch shares.
        counts: Rows of the new P, of the weights, and of d.
        operands: Strides of what the substitution reads; `scaled` of P, q, A and b.
    """

    shapes: list[tuple[int, int, int]]
    total: int
    shared: Any
    counts: tuple[int, int, int]
    operands: Any
    scaled: Any


class CompiledReduction(Reduction):
    """`Reduction` by the kernels."""

    def __init__(self, plan: Elimination, substitution: kernels.Substitution, data: Data, weights: kernels.Weights, threads: int) -> None:
        self.plan, self.data = plan, data
        self._substitution, self._weights, self._threads = substitution, weights, threads
        held = (weights.beta, weights.linear, weights.entries, weights.diagonal, weights.w)
        beta, linear, entries, diagonal, w = ((a, a.shape[1] if len(a) > 1 else 0) for a in held)
        self.back = (*beta, *linear, *entries, *diagonal)  # what the kernels' routes need to expand a point, and for an adjoint (`way`)
        self.way = (*entries, *w, *diagonal)

    def expand(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Reduction.expand`."""
        return self._substitution.expand(x, y, self._weights, None, self._threads)

    def reduce_rhs(self, r_x: np.ndarray, r_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Reduction.reduce_rhs`."""
        return self._substitution.reduce(r_x, r_y, self._weights, self._threads)

    def expand_step(self, dx: np.ndarray, dy: np.ndarray, r_x: np.ndarray, r_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Reduction.expand_step`."""
        return self._substitution.expand(dx, dy, self._weights, (r_x, r_y), self._threads)


def _parts(program: ConeProgram, e: Elimination) -> list[AffineMap]:
    """Maps to what is left of P, q, d, A and b, and to the numbers of the substitution: entries of its rows, beta, q_k and P_kk."""
    if not e.active:
        return list(program.maps)
    diagonal = np.flatnonzero(e.P_kk >= 0)
    held = program.P.rows(e.P_kk[diagonal])
    constant = np.zeros(len(e.k))
    constant[diagonal] = held.constant
    P_kk = AffineMap(constant, tuple(type(b)(b.channel, diagonal[b.rows], b.cols, b.coefs, b.size) for b in held.blocks))
    kept = [program.P.rows(e.keep_P), program.q.rows(e.keep_x), program.d, program.A.rows(e.keep_A), program.b.rows(e.keep_y)]
    return [*kept, program.A.rows(e.row_entries), program.b.rows(e.i), program.q.rows(e.k), P_kk]


def _layout(e: Elimination) -> kernels.Layout:
    return kernels.Layout(
        full=(e.full.n, e.full.m),
        size=(e.structure.n, e.structure.m),
        keep_x=e.keep_x,
        keep_y=e.keep_y,
        variable=e.k,
        row=e.i,
        c=e.c,
        start=np.searchsorted(e.rows.rows, np.arange(len(e.k) + 1)),
        column=e.rows.cols,
        P_size=len(e.structure.P_rows),
        place=e.place_P,
        groups=e.shares(),
    )


def _gradients(program: ConeProgram, channel: int) -> tuple[Any, ...]:
    """Kind, row, column, scalar of the channel, and coefficient of every data entry that a channel enters."""
    s = program.structure
    places = {"P": (s.P_rows, s.P_cols), "A": (s.A_rows, s.A_cols)}
    columns: list[list[np.ndarray]] = [[np.zeros(0, int)] for _ in range(4)] + [[np.zeros(0)]]
    for name, m in zip("PqdAb", program.maps, strict=True):
        for block in (b for b in m.blocks if b.channel == channel):
            order = kernels.running(block.cols)
            rows, cols, coefs = block.rows[order], block.cols[order], block.coefs[order]
            i, j = (index[rows] for index in places[name]) if name in places else (rows, rows)
            coefs = np.where(i == j, 0.5, 1.0) * coefs if name == "P" else coefs
            for held, new in zip(columns, (np.full(len(rows), kernels.KINDS[name]), i, j, cols, coefs), strict=True):
                held.append(new)
    return tuple(np.concatenate(held) for held in columns)
