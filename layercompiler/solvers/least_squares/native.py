"""A program spelled out in scalars and run by the compiled interpreter: residuals, Jacobians, Hessians and the pull of derivatives.

Nothing of a framework runs in a solve. What has no scalar form (see `arrays.torch_scalars`), or too long a one, stays with the framework.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from layercompiler import kernels
from layercompiler.arrays.base import UnspelledError
from layercompiler.errors import LayerCompilerError
from layercompiler.expressions import elimination
from layercompiler.expressions.scalars import Scalars, program
from layercompiler.kernels.tape import Descent, Slot, Tape
from layercompiler.programs.least_squares import Argument, Block, columns
from layercompiler.programs.robust import GemanMcClure
from layercompiler.solvers.least_squares import frames
from layercompiler.solvers.least_squares.descent import coordinates
from layercompiler.solvers.least_squares.evaluation import Evaluation, Point, cost_of, root_of

VALUES, STEP, WIDEN, THETA = range(4)  # arrays that tapes read: values (B, ambient), a step (B, n), widening (1,), parameters, constants
COST, ENERGY, GRADIENT, ENTRIES = range(4)
_AGREE = 1e-9


class UnsupportedError(Exception):
    """The program stays with the framework."""


class Native:
    """Functions of numpy arrays for one program.

    Args:
        evaluation: The program in a framework that can spell functions out.

    Attributes:
        linear: Tapes that add cost, energy, gradient and Gauss-Newton entries, one per block.
        light: Tapes that add cost, energy, gradient and the diagonal of those entries.
        second: Tapes that add the entries of the exact Hessian.
        pulls: Tapes that add gradients in theta.
        moves: Tapes that move elements of groups, one per variable.
        lifts: Tapes that turn cotangents of the stored numbers of groups into those of tangents, one per variable.

    Raises:
        UnsupportedError: The program has no scalar form.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation, self.structure, self.program = evaluation, evaluation.structure, evaluation.program
        if not kernels.available() or not hasattr(evaluation.xp, "spell"):
            raise UnsupportedError("no compiled kernels, or a framework whose functions cannot be spelled out")
        s = self.structure
        self.position = np.full(self.program.dof, -1)
        self.position[s.free] = np.arange(s.n)
        self.key = {(int(r), int(c)): k for k, (r, c) in enumerate(zip(s.rows, s.cols, strict=True))}
        self.constants: list[np.ndarray] = []
        try:
            self.blocks = [_Spelled(self, b) for b in self.program.blocks]
            self.linear, self.light = zip(*(b.linear() for b in self.blocks), strict=True) if self.blocks else ((), ())
            self.second, self.pulls = [b.second() for b in self.blocks], [b.pull() for b in self.blocks]
            self.moves, self.lifts = self._moves(), self._lifts()
            for b in self.blocks:
                del b.graph  # large, and done with
        except (UnspelledError, LayerCompilerError, TypeError, ValueError, IndexError, KeyError) as error:
            raise UnsupportedError(f"{type(error).__name__}: {error}") from error

    def changed(self) -> bool:
        """Whether tensors that residuals close over hold other numbers than those that were spelled out."""
        return any(b.changed() for b in self.blocks)

    @property
    def held(self) -> list[tuple[Any, Any]]:
        """Tensors that residuals close over, and copies of what they held."""
        return [pair for b in self.blocks for pair in b.changed.args[0]]

    def _moves(self) -> list[Tape]:
        """Tapes that move elements of groups."""
        out, xp = [], self.evaluation.xp
        for v, a, d in zip(self.program.variables, self.program.ambient_offsets, self.program.offsets, strict=False):
            if v.manifold.name == "euclidean" or not v.elements:
                continue
            m, graph = v.manifold, Scalars()
            x = np.array([graph.input(("x", j)) for j in range(m.ambient)], dtype=object)
            t = np.array([graph.input(("t", j)) for j in range(m.dof)], dtype=object)
            samples = [m.identity(), np.full(m.dof, 0.1)]
            (moved,), _, _ = xp.spell(lambda x, t, m=m: (m.normalize(xp, m.retract(xp, x, t)),), samples, [x, t], graph)
            every = np.arange(v.elements)
            places = {("x", j): Slot(VALUES, a + every * m.ambient + j) for j in range(m.ambient)}
            places |= {("t", j): Slot(STEP, self.position[d + every * m.dof + j]) for j in range(m.dof)}
            outputs = [(k, Slot(0, a + every * m.ambient + j)) for j, k in enumerate(moved)]
            out.append(self.tape(graph, outputs, places.__getitem__, v.elements))
        return out

    def _lifts(self) -> list[Tape]:
        """Tapes that turn cotangents of the values into those of the unknown."""
        out, xp = [], self.evaluation.xp
        for v, a, d in zip(self.program.variables, self.program.ambient_offsets, self.program.offsets, strict=False):
            m, graph, every = v.manifold, Scalars(), np.arange(v.elements)
            if m.name == "euclidean" or not v.elements:
                continue
            x, g, t = (
                np.array([graph.input((kind, j)) for j in range(size)], dtype=object)
                for kind, size in zip("xgt", (m.ambient, m.ambient, m.dof), strict=True)
            )
            (velocity,), _, _ = xp.spell(lambda x, t, m=m: (m.tangent(xp, x, t),), [m.identity(), np.ones(m.dof)], [x, t], graph)
            found = graph.forward([int(k) for k in velocity], {int(k): {i: graph.one} for i, k in enumerate(t)})
            places = {
                (kind, j): Slot(array, a + every * m.ambient + j) for kind, array in (("x", VALUES), ("g", STEP)) for j in range(m.ambient)
            }
            outputs = []
            for i in range(m.dof):
                by = [(int(k), f[i]) for k, f in zip(g, found, strict=True) if i in f]
                outputs.append((graph.dot([k for k, _ in by], [f for _, f in by]), Slot(0, self.position[d + every * m.dof + i])))
            out.append(self.tape(graph, outputs, places.__getitem__, v.elements))
        return out

    def tape(self, graph: Scalars, outputs: Sequence[tuple[int, Slot]], place: Callable[[Any], Slot], factors: int) -> Tape:
        """The program of some outputs."""
        code, constants, registers, inputs, slots = program(graph, [(k, s) for k, s in outputs if k != graph.zero])
        return Tape(code, constants, registers, [place(key) for key in inputs], slots, factors)

    @cached_property
    def ldl(self) -> Any:
        """Factorisation of the entries and one more diagonal."""
        n, s = self.structure.n, self.structure
        every = np.arange(n)
        return kernels.LDL(n, np.concatenate([s.rows, every]), np.concatenate([s.cols, every]), np.ones(n, np.int8))

    @cached_property
    def plain(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of Euclidean numbers among the values, and their columns (-1: fixed)."""
        at, col = [np.zeros(0, int)], [np.zeros(0, int)]
        for v, a, d in zip(self.program.variables, self.program.ambient_offsets, self.program.offsets, strict=False):
            if v.manifold.name == "euclidean":
                at.append(a + np.arange(v.size))
                col.append(self.position[d + np.arange(v.size)])
        return np.concatenate(at), np.concatenate(col)

    @cached_property
    def descent(self) -> Descent:
        """The whole solve."""
        s = self.structure
        diagonal = np.array([self.key.get((i, i), -1) for i in range(s.n)], np.int32)
        sizes = (s.n, self.evaluation.size, len(s.rows))
        return Descent(self.linear, self.light, self.second, self.moves, self.ldl, sizes, diagonal, coordinates(s), self.plain)

    # Numbers -----------------------------------------------------------------------------------------------------------------

    def arrays(self, theta: Sequence[Any], shared: Sequence[bool], widen: float = 1.0) -> tuple[list[np.ndarray], list[int]]:
        """Widening, parameters and constants with the distances of instances."""
        host = [np.ascontiguousarray(self.evaluation.xp.numpy(t), dtype=np.float64) for t in theta]
        steps = [0 if s else int(np.prod(p.shape, dtype=int)) for s, p in zip(shared, self.program.parameters, strict=True)]
        return [np.array([widen]), *host, *self.constants], [0, *steps, *(0 for _ in self.constants)]

    def evaluate(self, values: np.ndarray, inputs: list[np.ndarray], steps: list[int]) -> Point:
        """See `Evaluation.linearize`."""
        s, B = self.structure, len(values)
        found = [np.zeros(B), np.zeros(B), np.zeros((B, s.n)), np.zeros((B, len(s.rows)))]
        self._run(self.linear, values, np.zeros((B, 0)), inputs, steps, found, [1, 1, s.n, len(s.rows)])
        on = np.flatnonzero(s.rows == s.cols)
        diagonal = np.zeros((B, s.n))
        diagonal[:, s.rows[on]] = found[ENTRIES][:, on]
        return Point(found[COST], found[ENERGY], found[GRADIENT], found[ENTRIES], diagonal)

    def hessian(self, values: np.ndarray, inputs: list[np.ndarray], steps: list[int]) -> np.ndarray:
        """See `Evaluation.hessian`."""
        found = np.zeros((len(values), len(self.structure.rows)))
        self._run(self.second, values, np.zeros((len(values), 0)), inputs, steps, [found], [found.shape[1]])
        return found

    def lift(self, values: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
        """See `Evaluation.lift`."""
        found = np.zeros((len(values), self.structure.n))
        at, col = (k[self.plain[1] >= 0] for k in self.plain)
        found[:, col] = cotangent[:, at]
        self._run(self.lifts, values, cotangent, [], [], [found], [found.shape[1]])
        return found

    def pull(self, values: np.ndarray, u: np.ndarray, inputs: list[np.ndarray], steps: list[int]) -> list[np.ndarray]:
        """See `solver.pull`: one array (B, *shape) per parameter, or (*shape) for shared ones."""
        B, parameters = len(values), self.program.parameters
        found = [np.zeros((*((B,) if k else ()), *p.shape)) for p, k in zip(parameters, steps[1:], strict=False)]
        flat = [f.reshape(-1) for f in found]
        self._run(self.pulls, values, u, inputs, steps, flat, steps[1 : 1 + len(parameters)])
        return found

    def _run(self, tapes: Any, values: Any, step: Any, inputs: Any, steps: Any, found: Any, distances: Any) -> None:
        given = [np.ascontiguousarray(values, np.float64), np.ascontiguousarray(step, np.float64), *inputs]
        for tape in tapes:
            tape.run(len(values), given, [values.shape[1], step.shape[1], *steps], found, distances)


class _Spelled:
    """One block: residual rows, cost and root of the loss's slope as nodes of the numbers of one factor."""

    def __init__(self, native: Native, block: Block) -> None:
        self.native, self.block, self.graph = native, block, Scalars()
        self.held: dict[int, int] = {}  # constants among the arrays of the program
        e, xp, graph = native.evaluation, native.evaluation.xp, self.graph
        self.columns = native.position[columns(native.program, block)]
        self.free = {c for c in range(self.columns.shape[1]) if (self.columns[:, c] >= 0).any()}
        self.extra: tuple[Argument, ...] = (*block.arguments, *block.extra)
        self.graded = isinstance(block.robust, GemanMcClure) and block.robust.graduated
        rng = np.random.default_rng(0)
        samples, inputs, self.ambient = [], [], []
        for k, (p, index) in enumerate(zip(block.on, block.index, strict=True)):
            spec = native.program.variables[p]
            shape = spec.shape if index is None else spec.element_shape
            x = spec.init if index is None else spec.init.reshape(spec.elements, *spec.element_shape)[0]
            samples.append(x + 0.1 * rng.standard_normal(shape))
            inputs.append(_inputs(graph, ("v", k), shape))
            self.ambient.append(inputs[-1])
        for k, argument in enumerate(self.extra):
            known = np.asarray(argument.value)
            shape = native.program.parameters[argument.parameter].shape if argument.parameter is not None else known.shape
            shape = shape[1:] if argument.mapped else shape
            if argument.parameter is None and not argument.mapped:
                samples.append(known)
                inputs.append(np.asarray(np.frompyfunc(graph.constant, 1, 1)(known.astype(float)), dtype=object))
                continue
            samples.append(rng.uniform(0.5, 1.5, shape))
            inputs.append(_inputs(graph, ("a", k), shape))
        if self.graded:
            samples.append(np.ones(()))
            inputs.append(_inputs(graph, ("widen",), ()))

        def function(*given: Any) -> tuple[Any, ...]:
            given, widen = (given[:-1], given[-1]) if self.graded else (given, 1.0)
            variables, arguments, weights = e.cut(block, given)
            r = e.weigh(block, block.residual(xp, *variables, *arguments), weights)
            c = e.radius(block, given, widen)
            cost, root = (f(xp, block, r, c, e.mass(block, given)) for f in (cost_of, root_of))
            return (r, cost) if root is None else (r, cost, root)

        nodes, told, self.changed = xp.spell(function, samples, inputs, graph)
        self._check(nodes, told, samples, inputs)
        self.rows = [int(k) for k in nodes[0].reshape(-1)]
        self.cost = int(nodes[1].reshape(-1)[0])
        root = [int(k) for k in nodes[2].reshape(-1)] if len(nodes) > 2 else None
        self.root = root if root is None or block.separable else root * len(self.rows)
        self.frames = frames.Frames(self.graph)
        self.seeds = self._tangents()

    @property
    def factors(self) -> int:
        """Factors of the block."""
        return 1 if self.block.count is None else self.block.count

    def _check(self, nodes: Any, told: Any, samples: Any, inputs: Any) -> None:
        """Holds the spelled function to what was recorded."""
        flat = [int(k) for x in nodes for k in x.reshape(-1)]
        given = {int(k): float(v) for s, n in zip(samples, inputs, strict=True) for k, v in zip(n.reshape(-1), np.ravel(s), strict=True)}
        keys = {key[1]: node for key, node in self.graph._seen.items() if key[0] == "input"}
        code, constants, registers, slots, out = program(self.graph, [(k, i) for i, k in enumerate(flat)])
        numbers = np.array([given[keys[key]] for key in slots])
        one = [Slot(0, np.array([i], np.int32)) for i in range(len(slots))]
        found = np.zeros(len(flat))
        Tape(code, constants, registers, one, [Slot(0, np.array([i], np.int32)) for i in out], 1).run(1, [numbers], [0], [found], [0])
        want = np.concatenate([np.ravel(x) for x in told])
        if not np.allclose(found, want, rtol=_AGREE, atol=_AGREE, equal_nan=True):
            raise UnspelledError("the spelled function differs from the recorded one")

    def _tangents(self) -> dict[int, dict[int, int]]:
        """Derivatives of the stored numbers by the columns of the factor's own tangent; of relative motions, by directions beyond them."""
        graph, xp, seeds, start = self.graph, self.native.evaluation.xp, {}, 0
        elements: list[tuple[Any, np.ndarray, int]] = []

        def moved(m: Any, element: np.ndarray, start: int) -> dict[int, dict[int, int]]:
            t = _inputs(graph, ("tangent",), (m.dof,))
            (velocity,), _, _ = xp.spell(lambda x, t, m=m: (m.tangent(xp, x, t),), [m.identity(), np.ones(m.dof)], [element, t], graph)
            found = graph.forward([int(k) for k in velocity], {int(k): {i: graph.one} for i, k in enumerate(t)})
            return {int(k): {start + i: d for i, d in f.items()} for k, f in zip(element, found, strict=True)}

        for p, index, x in zip(self.block.on, self.block.index, self.ambient, strict=True):
            spec = self.native.program.variables[p]
            m, count = spec.manifold, spec.elements if index is None else 1
            if m.name == "euclidean":
                seeds |= {int(k): {start + i: graph.one} for i, k in enumerate(x.reshape(-1))}
                start += x.size
                continue
            for element in x.reshape(count, m.ambient):
                seeds |= moved(m, element, start)
                elements.append((m, element, start))
                start += m.dof
        for motion in frames.motions(graph, xp, elements):
            seeds = moved(motion.manifold, motion.nodes, start) | seeds
            self.frames.add(motion, start)
            start += motion.manifold.dof
        return seeds

    def place(self, key: Any) -> Slot:
        """Where an input lies."""
        if key[0] == "widen":
            return Slot(WIDEN, np.zeros(1, np.int32))
        if key[0] == "u":
            return Slot(STEP, self._table(self.columns[:, key[1]]))
        kind, k, j = key
        if kind == "v":
            spec = self.native.program.variables[self.block.on[k]]
            base = int(self.native.program.ambient_offsets[self.block.on[k]])
            index = self.block.index[k]
            size = int(np.prod(spec.element_shape, dtype=int))
            return Slot(VALUES, np.array([base + j]) if index is None else base + np.asarray(index) * size + j)
        argument = self.extra[k]
        if argument.parameter is not None:
            shape, array = self.native.program.parameters[argument.parameter].shape, THETA + argument.parameter
        else:
            shape = np.asarray(argument.value).shape
            if k not in self.held:
                self.held[k] = len(self.native.constants)
                self.native.constants.append(np.ascontiguousarray(argument.value, np.float64).reshape(-1))
            array = THETA + len(self.native.program.parameters) + self.held[k]
        if not argument.mapped:
            return Slot(array, np.array([j]))
        return Slot(array, np.arange(self.factors) * int(np.prod(shape[1:], dtype=int)) + j)

    def _table(self, places: np.ndarray) -> np.ndarray:
        places = np.asarray(places)
        return places[:1] if self.block.count is None else places

    def _entries(self, nodes: dict[tuple[int, int], int]) -> list[tuple[int, Slot]]:
        """Outputs of entries (local column, local column) of a symmetric matrix, the first not after the second."""
        out, key = [], self.native.key
        for (i, j), node in nodes.items():
            a, b = self.columns[:, i], self.columns[:, j]
            table = np.array([key[min(p, q), max(p, q)] if p >= 0 and q >= 0 else -1 for p, q in zip(a.tolist(), b.tolist(), strict=True)])
            out.append((node, Slot(ENTRIES, self._table(table))))
            twice = (a == b) & (a >= 0) & (i != j)  # two places of one column: the entry and its mirror
            if twice.any():
                out.append((node, Slot(ENTRIES, self._table(np.where(twice, table, -1)))))
        return out

    def _tape(self, outputs: Sequence[tuple[int, Slot]]) -> Tape:
        return self.native.tape(self.graph, outputs, self.place, self.factors)

    def linear(self) -> tuple[Tape, Tape]:
        """Cost, energy, gradient and Gauss-Newton entries; the same with the diagonal of the entries only."""
        graph, rows = self.graph, self.rows
        jacobian = elimination.jacobian(graph, rows, self.seeds)
        if self.root is not None:
            rows = [graph.call("mul", w, r) for w, r in zip(self.root, rows, strict=True)]
            jacobian = [{c: graph.call("mul", w, d) for c, d in J.items()} for w, J in zip(self.root, jacobian, strict=True)]
        gradient: dict[int, int] = {}
        squares: dict[tuple[int, int], int] = {}
        products: dict[tuple[int, int], int] = {}
        for r, J in zip(rows, jacobian, strict=True):
            for i, d in J.items():
                gradient[i] = graph.call("add", gradient.get(i, graph.zero), graph.call("mul", d, r))
                for j, e in J.items():
                    products[i, j] = graph.call("add", products.get((i, j), graph.zero), graph.call("mul", d, e))
            for i, d in self.frames.row(J).items():
                squares[i, i] = graph.call("add", squares.get((i, i), graph.zero), graph.call("mul", d, d))
        gradient = {c: d for c, d in self.frames.row(gradient).items() if c in self.free}
        entries = self.frames.pairs(products, {}, self.free)
        squares = {pair: d for pair, d in squares.items() if pair[0] in self.free}
        outputs = [(self.cost, Slot(COST, np.zeros(1))), (graph.dot(rows, rows), Slot(ENERGY, np.zeros(1)))]
        outputs += [(k, Slot(GRADIENT, self._table(self.columns[:, i]))) for i, k in gradient.items()]
        apart = all(len(set(row)) == len(row) for row in (c[c >= 0].tolist() for c in self.columns))
        on = np.flatnonzero(self.native.structure.rows == self.native.structure.cols)
        column = np.full(len(self.native.structure.rows) + 1, -1)
        column[on] = self.native.structure.rows[on]
        diagonal = [(k, Slot(ENTRIES, column[s.table])) for k, s in self._entries(squares if apart else entries)]
        return self._tape(outputs + self._entries(entries)), self._tape(outputs + [(k, s) for k, s in diagonal if (s.table >= 0).any()])

    def second(self) -> Tape:
        """Entries of the exact Hessian: derivatives along tangents of the gradient along tangents."""
        gradient, second = elimination.hessian(self.graph, self.cost, self.seeds)
        entries = self.frames.pairs(second, gradient, self.free)
        return self._tape([(k, Slot(0, s.table)) for k, s in self._entries(entries)])

    def pull(self) -> Tape:
        """Gradients in theta of -<F, u>."""
        graph = self.graph
        along: dict[int, dict[Any, int]] = {}
        u = {c: graph.input(("u", c)) for c in range(self.columns.shape[1])}
        u |= {c: graph.dot([u[k] for k in turn], list(turn.values())) for c, turn in self.frames.turns.items()}
        for k, directions in self.seeds.items():
            moved = graph.dot([u[c] for c in directions], list(directions.values()))
            if moved != graph.zero:
                along[k] = {0: moved}
        (phi,) = graph.forward([self.cost], along)
        goals = {}
        for k, argument in enumerate(self.extra):
            if argument.parameter is not None:
                shape = self.native.program.parameters[argument.parameter].shape
                for j in range(int(np.prod(shape[1:] if argument.mapped else shape, dtype=int))):
                    goals[graph.input(("a", k, j))] = ("a", k, j)
        by = graph.reverse({phi[0]: graph.constant(-1.0)}, goals) if phi else {}
        outputs = []
        for node, gradient in by.items():
            slot = self.place(goals[node])
            outputs.append((gradient, Slot(slot.array - THETA, slot.table)))
        return self._tape(outputs)


def _inputs(graph: Scalars, key: tuple[Any, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Nodes of inputs."""
    flat = [graph.input((*key, j)) for j in range(int(np.prod(shape, dtype=int)))]
    out = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(shape)
