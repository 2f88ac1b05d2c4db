"""Variables of a nonlinear problem: what is free in them, their bounds and their start.

A solver of least squares knows bounds of single entries, and nothing else. So every constraint must say something about one entry at a
time: `x >= 0`, `x[2:] <= u`, `x[0] == x0`. Entries that an equality fixes are replaced by their value; where a bound depends on parameters,
the entry is shifted and scaled (x = l + u with u >= 0, or x = l + (h - l) u with 0 <= u <= 1), so that the derivative by the bound comes
out right; attributes (symmetric, diag, sparsity) leave only the entries that are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np

from layercompiler import arrays
from layercompiler.errors import IntegerVariableError, NotLeastSquaresError, UnsupportedExpressionError
from layercompiler.expressions import Builder, Graph
from layercompiler.expressions.movement import concatenate, gather
from layercompiler.expressions.sparsity import pattern
from layercompiler.problems.nonlinear.translate import Translator, dense
from layercompiler.problems.notation import text

_REFUSED = ("PSD", "NSD", "hermitian", "complex", "imag")
_COMPARED = {"Inequality": "<=", "NonPos": "<=", "NonNeg": ">=", "Equality": "==", "Zero": "=="}


@dataclass
class Unknown:
    """One variable.

    Attributes:
        variable: As the user wrote it.
        entries: (variable.shape) which free number each entry reads, -1 for structural zeros.
        count: How many free numbers there are, before equalities.
        lower: (index, node) pairs: lower bounds of some of them.
        upper: Likewise upper bounds.
        fixed: Likewise values.
        start: (count,) where to begin.
    """

    variable: Any
    entries: np.ndarray
    count: int
    lower: list[tuple[np.ndarray, int]] = field(default_factory=list)
    upper: list[tuple[np.ndarray, int]] = field(default_factory=list)
    fixed: list[tuple[np.ndarray, int]] = field(default_factory=list)

    @property
    def start(self) -> np.ndarray:
        """(count,) the variable's `.value` where it has one, else zero."""
        out = np.zeros(self.count)
        if self.variable.value is not None:
            seen = self.entries.reshape(-1) >= 0
            out[self.entries.reshape(-1)[seen]] = dense(self.variable.value).reshape(-1)[seen]
        return out


@dataclass(frozen=True)
class Solved:
    """A variable as it is solved for.

    Attributes:
        shape: Shape of the unknown.
        start: Where to begin.
        lower: Constant lower bounds, or None.
        upper: Constant upper bounds, or None.
    """

    shape: tuple[int, ...]
    start: np.ndarray
    lower: np.ndarray | None
    upper: np.ndarray | None


def unknown(variable: Any) -> Unknown:
    """A variable with the entries that its attributes leave free.

    Raises:
        IntegerVariableError: Boolean or integer.
        UnsupportedExpressionError: Complex, or constrained to a cone of matrices.
    """
    attributes = variable.attributes
    if attributes.get("boolean") or attributes.get("integer"):
        raise IntegerVariableError(
            f"variable '{variable.name()}' is boolean or integer in a nonlinear problem", mend="relax it, or linearise the problem"
        )
    for name in _REFUSED:
        if attributes.get(name):
            raise UnsupportedExpressionError(
                f"variable '{variable.name()}' is declared {name} in a nonlinear problem",
                expected="real variables with nonneg, nonpos, bounds, symmetric, diag or sparsity",
                got=name,
                mend="write a positive semidefinite matrix as L @ L.T with a free L" if name == "PSD" else "use real variables",
            )
    shape = tuple(variable.shape)
    entries = np.arange(variable.size).reshape(shape)
    if attributes.get("symmetric") and variable.ndim == 2:
        i, j = np.triu_indices(shape[0])
        entries = np.zeros(shape, int)
        entries[i, j] = entries[j, i] = np.arange(len(i))
    elif attributes.get("diag"):
        entries = np.where(np.eye(shape[0], dtype=bool), np.arange(shape[0]), -1)
    elif attributes.get("sparsity") is not None and attributes.get("sparsity") is not False:
        entries = np.full(shape, -1)
        entries[variable.sparse_idx] = np.arange(len(variable.sparse_idx[0]))
    return Unknown(variable, entries, int(entries.max(initial=-1)) + 1)


class Unknowns:
    """All variables of a problem, and what its constraints say about them.

    Args:
        variables: Of the problem.
        parameters: Of the problem, those that are given at run time.
        constants: Values of other parameters by `id`.

    Attributes:
        builder: The graph; input k is what is solved for in place of variable k, input V + k the parameter k.
        translator: Translates expressions into it.
        solved: What is solved for, one per variable.
    """

    def __init__(self, variables: Sequence[Any], parameters: Sequence[Any], constants: dict[int, Any], constraints: Sequence[Any]) -> None:
        self.builder = Builder()
        self.variables = [unknown(v) for v in variables]
        self._parameters = {p.id: self.builder.input(len(variables) + k, tuple(p.shape)) for k, p in enumerate(parameters)}
        self._parameters |= {i: self.builder.constant(dense(v)) for i, v in constants.items()}
        self._offsets = Translator(self.builder, dict(self._parameters))
        for u in self.variables:
            self._attributes(u)
        for constraint in constraints:
            self._constraint(constraint)
        self.solved: list[Solved] = []
        self._shifts: list[tuple[np.ndarray, int | None, int | None]] = []
        leaves = dict(self._parameters)
        for k, u in enumerate(self.variables):
            leaves[u.variable.id] = self._value(k, u)
        self.translator = Translator(self.builder, leaves)

    def _attributes(self, u: Unknown) -> None:
        every, attributes = np.arange(u.count), u.variable.attributes
        zero = self.builder.constant(np.zeros(u.count))
        if attributes.get("nonneg") or attributes.get("pos"):
            u.lower.append((every, zero))
        if attributes.get("nonpos") or attributes.get("neg"):
            u.upper.append((every, zero))
        for place, bound in zip((u.lower, u.upper), attributes.get("bounds") or (), strict=False):
            node = self._offsets.node(bound) if isinstance(bound, cp.Expression) else self.builder.constant(dense(bound))
            shape = tuple(u.variable.shape)
            if self.builder.shape(node) != shape:
                node = self.builder.call("broadcast", node, options=(shape,))
            seen = np.flatnonzero(u.entries.reshape(-1) >= 0)
            place.append((u.entries.reshape(-1)[seen], gather(self.builder, node, seen)))

    def _constraint(self, constraint: Any) -> None:
        kind = type(constraint).__name__
        if kind not in _COMPARED:
            raise _refused(constraint, f"a constraint of kind {kind}")
        sign = -1.0 if kind == "NonNeg" else 1.0
        expression = constraint.args[0] - constraint.args[1] if len(constraint.args) == 2 else constraint.args[0]
        columns, slopes, offset = self._entries(constraint, expression)
        bound = self.builder.call("divide", offset, self.builder.constant(-slopes))
        starts = np.concatenate([[0], np.cumsum([u.count for u in self.variables])]).astype(int)
        for k, u in enumerate(self.variables):
            mine = (columns >= starts[k]) & (columns < starts[k + 1])
            for place, rows in (
                (u.fixed, mine & (_COMPARED[kind] == "==")),
                (u.upper, mine & (_COMPARED[kind] != "==") & (sign * slopes > 0)),
                (u.lower, mine & (_COMPARED[kind] != "==") & (sign * slopes < 0)),
            ):
                if rows.any():
                    place.append((columns[rows] - starts[k], gather(self.builder, bound, np.flatnonzero(rows))))

    def _entries(self, constraint: Any, expression: Any) -> tuple[np.ndarray, np.ndarray, int]:
        """For each row a x_j + b of a constraint: the column j, the slope a, and the node of b (rows,)."""
        if not expression.is_affine():
            raise _refused(constraint, "a constraint that is not affine in the variables")
        builder, sizes = Builder(), [u.count for u in self.variables]
        leaves = {u.variable.id: gather(builder, builder.input(k, (u.count,)), u.entries) for k, u in enumerate(self.variables)}
        V = len(self.variables)
        names = {p: V + i for i, p in enumerate(self._parameters)}
        leaves |= {p: builder.input(names[p], self.builder.shape(node)) for p, node in self._parameters.items()}
        root = Translator(builder, leaves).node(expression)
        graph = builder.graph([gather(builder, root, np.arange(expression.size))])
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        structure = pattern(graph, {k: int(starts[k]) for k in range(V)}, int(starts[-1]))
        if np.any(np.diff(structure.indptr) != 1):
            raise _refused(constraint, "a constraint that couples entries of the variables")
        xp, rng = arrays.get("numpy"), np.random.default_rng(0)

        def slopes() -> np.ndarray:
            """By differences of an affine function, which are exact; the parameters at random."""
            theta = {names[p]: rng.uniform(1.0, 2.0, self.builder.shape(node)) for p, node in self._parameters.items()}
            seeds = np.ones(int(starts[-1]))

            def at(z: np.ndarray) -> np.ndarray:
                inputs = [z[starts[k] : starts[k + 1]] for k in range(V)] + [theta[V + i] for i in range(len(names))]
                return np.asarray(graph.evaluate(xp, inputs)[0]) + np.zeros(expression.size)

            return at(seeds) - at(0 * seeds)

        first, second = slopes(), slopes()
        if not np.allclose(first, second, rtol=1e-9, atol=1e-12):
            raise _refused(constraint, "a constraint in which a parameter multiplies a variable")
        zeros = {u.variable.id: self.builder.constant(np.zeros(u.variable.shape)) for u in self.variables}
        offset = Translator(self.builder, zeros | self._parameters).node(expression)
        rounded = np.round(first, 12)
        return (
            structure.indices.astype(int),
            np.where(np.abs(first - rounded) < 1e-11, rounded, first),
            gather(self.builder, offset, np.arange(expression.size)),
        )

    def _joined(self, count: int, parts: list[tuple[np.ndarray, int]], operation: str, nothing: float) -> tuple[int, np.ndarray]:
        """One bound per number, and which numbers have one."""
        total, known = self.builder.constant(np.full(count, nothing)), np.zeros(count, bool)
        for index, node in parts:
            for k in range(int(np.bincount(index, minlength=1).max(initial=0))):  # a number that comes several times has several bounds
                place = np.full(count, len(index))
                order = np.argsort(index, kind="stable")
                rank = np.arange(len(index)) - np.searchsorted(index[order], index[order])
                chosen = order[rank == k]
                place[index[chosen]] = chosen
                both = concatenate(self.builder, [node, self.builder.constant(np.full(1, nothing))])
                total = self.builder.call(operation, total, gather(self.builder, both, place))
            known[index] = True
        value = self.builder.value(total)
        return total, known if value is None else np.isfinite(value)

    def start(self, k: int) -> Graph:
        """The graph from a start of variable k (input k) and the parameters to a start of what is solved for."""
        u, solved, (free, base, span) = self.variables[k], self.solved[k], self._shifts[k]
        b, shape = self.builder, tuple(self.variables[k].variable.shape)
        first = np.zeros(u.count, int)
        seen = np.flatnonzero(u.entries.reshape(-1) >= 0)[::-1]
        first[u.entries.reshape(-1)[seen]] = seen
        # The variable's own value is not in the graph of the problem, where input k is the unknown: a graph of its own.
        made = Builder()
        value = gather(made, made.input(k, shape), first[free])
        if base is not None and span is not None:
            ends = b.graph([base, span])
            V = len(self.variables)
            inputs = {i: made.input(i, s) for i, s in ends.inputs().items() if i >= V}
            low, length = made.append(ends, inputs)
            value = made.call("fraction", made.call("add", value, made.call("negative", low)), length)
        for bound, operation in ((solved.lower, "maximum"), (solved.upper, "minimum")):
            if bound is not None:
                value = made.call(operation, value, made.constant(bound.reshape(-1)))
        return made.graph([gather(made, value, np.arange(len(free)).reshape(solved.shape))])

    def _value(self, k: int, u: Unknown) -> int:
        """The node of the variable, from what is solved for."""
        b, start = self.builder, u.start
        lower, has_lower = self._joined(u.count, u.lower, "maximum", -np.inf)
        upper, has_upper = self._joined(u.count, u.upper, "minimum", np.inf)
        held = np.zeros(u.count, bool)
        for index, _ in u.fixed:
            if held[index].any() or len(np.unique(index)) < len(index):
                raise NotLeastSquaresError("two equalities fix the same entry of a variable", where=u.variable.name())
            held[index] = True
        free = np.flatnonzero(~held)
        low, high = b.value(lower), b.value(upper)
        plain = not u.fixed and u.count == u.variable.size
        if low is not None and high is not None:
            if np.any(low > high):
                raise NotLeastSquaresError("the bounds of a variable leave nothing", where=u.variable.name(), got="lower above upper")
            shape = tuple(u.variable.shape) if plain else (len(free),)
            bounds = [None if np.all(np.isinf(v[free])) else v[free].reshape(shape) for v in (low, high)]
            self._shifts.append((free, None, None))
            self.solved.append(Solved(shape, np.clip(start, low, high)[free].reshape(shape), *bounds))
            moved = gather(b, b.input(k, shape), np.arange(len(free)))
        else:
            both = has_lower & has_upper
            unit = [np.where(has_lower, 0.0, -np.inf), np.where(both, 1.0, np.where(has_upper & ~has_lower, 0.0, np.inf))]
            begin = np.where(both, 0.5, np.where(has_lower | has_upper, 0.0, start))
            self.solved.append(Solved((len(free),), begin[free], unit[0][free], unit[1][free]))
            n, every = u.count, np.arange(u.count)
            ends = concatenate(b, [lower, upper, b.constant(np.zeros(1))])
            base = gather(b, ends, np.where(has_lower, every, np.where(has_upper, n + every, 2 * n))[free])
            pair = np.flatnonzero(both)
            ends = gather(b, upper, pair), b.call("negative", gather(b, lower, pair))
            lengths = concatenate(b, [b.call("length", b.call("add", *ends)), b.constant(np.ones(1))])
            place = np.full(n, len(pair))
            place[pair] = np.arange(len(pair))
            span = gather(b, lengths, place[free])
            self._shifts.append((free, base, span))
            moved = b.call("add", base, b.call("multiply", span, b.input(k, (len(free),))))
        if u.fixed:
            place = np.zeros(u.count, int)
            place[free] = np.arange(len(free))
            begin = len(free)
            for index, _ in u.fixed:
                place[index] = begin + np.arange(len(index))
                begin += len(index)
            moved = gather(b, concatenate(b, [moved, *(node for _, node in u.fixed)]), place)
        return gather(b, moved, u.entries)


def _refused(constraint: Any, what: str) -> NotLeastSquaresError:
    return NotLeastSquaresError(
        "a nonlinear least-squares problem takes bounds and fixed entries only",
        where=text(constraint),
        expected="constraints on single entries, such as x >= 0, x[2:] <= u or x[0] == x0",
        got=what,
        mend="add the constraint to the objective as a weighted square, or substitute it",
    )
