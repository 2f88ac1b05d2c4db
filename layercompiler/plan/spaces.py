"""Where an estimator works: the scores of a problem, and the way from the arguments to them and from solutions to the outputs.

Scores u are maximised: u = -c for a cost c. Three kinds of problem, one interface:

    Costs       a mixed-integer program whose parameters enter the costs only: u = -c(theta)
    Constraints a mixed-integer program with parameters anywhere: u = (theta), and each perturbed instance is a program of its own
    Vectors     a black box: u = +- the argument
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from layercompiler.derivatives.perturbation.estimators.identity import PROJECTIONS
from layercompiler.errors import ShapeError
from layercompiler.plan.arguments import Arguments
from layercompiler.plan.chain import Chain
from layercompiler.programs.blackbox import BlackBox
from layercompiler.programs.cone import OutputSpec, ParameterSpec
from layercompiler.programs.discrete import DiscreteProgram
from layercompiler.solvers.engine import Options
from layercompiler.solvers.mixed_integer import Found, choose
from layercompiler.solvers.oracles.guard import guarded
from layercompiler.solvers.oracles.recognize import recognize
from layercompiler.status import Status


@dataclass
class Calls:
    """The oracle of one call: solves, and keeps account of failures by row.

    Attributes:
        status: `Status` codes of the rows of the last call.
        notes: What was wrong, by row of the last call.
    """

    bound: Any
    options: Options
    solver: Any = None
    status: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))
    notes: dict[int, str] = field(default_factory=dict)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """See `Oracle`."""
        x, self.status, self.notes = self.bound.maximize(scores, self)
        return x

    def project(self, gradient: np.ndarray, kind: str) -> np.ndarray:
        """See `Oracle`."""
        return self.bound.space.project(gradient, kind)

    def mask(self) -> np.ndarray | None:
        """See `Oracle`."""
        return self.bound.space.mask


@dataclass(frozen=True)
class BoundCall:
    """The arguments of one call.

    Attributes:
        space: The problem.
        batch: Batch shape; `count` instances.
        scores: (count, d); rows of instances with non-finite arguments are NaN.
        held: What the way back to the arguments needs.
    """

    space: Space
    batch: tuple[int, ...]
    count: int
    scores: np.ndarray
    held: Any = None

    def maximize(self, scores: np.ndarray, calls: Calls) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Solutions, status and notes for scores (N, d), N a multiple of `count`."""
        return self.space.maximize(self, scores, calls)


class Space(ABC):
    """A discrete problem as an estimator and a framework see it."""

    parameters: tuple[ParameterSpec, ...]
    outputs: tuple[OutputSpec, ...]
    mask: np.ndarray | None = None
    reader: Arguments

    @property
    @abstractmethod
    def oracle(self) -> str:
        """Name of what solves it."""

    @property
    def width(self) -> int:
        """Length d' of a solution."""
        return _size(self)

    @property
    def noise_width(self) -> int:
        """Length d of the scores."""
        return self.width

    @abstractmethod
    def bind(self, arrays: Sequence[Any], strict: bool) -> BoundCall:
        """Read arguments that all have the same batch shape; `strict` raises for non-finite ones."""

    @abstractmethod
    def maximize(self, bound: BoundCall, scores: np.ndarray, calls: Calls) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """See `BoundCall.maximize`."""

    @abstractmethod
    def to_outputs(self, solutions: np.ndarray) -> list[np.ndarray]:
        """(N, d') solutions to (N, size) of each output."""

    @abstractmethod
    def from_outputs(self, cotangents: Sequence[np.ndarray | None], rows: int) -> np.ndarray:
        """(N, size) cotangents of each output to (N, d')."""

    @abstractmethod
    def to_arguments(self, bound: BoundCall, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        """Gradients (count, d) of the scores to gradients of the arguments, (batch..., *shape)."""

    @abstractmethod
    def value(self, bound: BoundCall, solutions: np.ndarray) -> np.ndarray:
        """The objective (count,) at solutions (count, d'), as the user wrote it."""

    @property
    @abstractmethod
    def equalities(self) -> Any | None:
        """A matrix E with E z constant, or None."""

    @cached_property
    def _basis(self) -> np.ndarray | None:
        """Orthonormal rows that span the row space of the equalities."""
        E = self.equalities
        if E is None or E.shape[0] == 0 or E.shape[1] > 4000:
            return None
        dense = E.toarray() if sp.issparse(E) else np.asarray(E, dtype=float)
        _, s, vt = np.linalg.svd(dense, full_matrices=False)
        return vt[s > 1e-10 * max(s[0], 1e-300)]

    def project(self, gradient: np.ndarray, kind: str) -> np.ndarray:
        """See `Oracle.project`."""
        assert kind in PROJECTIONS
        basis = self._basis if kind in ("auto", "equalities") else None
        if basis is None or basis.shape[1] != gradient.shape[1]:
            return gradient
        return gradient - (gradient @ basis.T) @ basis


class Costs(Space):
    """A mixed-integer linear program with parameters in its costs."""

    def __init__(self, program: DiscreteProgram, solver: str) -> None:
        self.program, self.solver = program, str(solver)
        self.parameters, self.outputs = program.cone.parameters, program.cone.outputs
        self.reader = Arguments(program.cone)
        parametric = program.cone.q.parametric
        self.mask = None if parametric.all() else parametric
        self.match = recognize(program.fixed) if self.solver.lower() == "auto" else None
        self.engine = choose(self.solver, program.fixed)(program.fixed)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.program, self.solver)

    @property
    def oracle(self) -> str:
        """See `Space.oracle`."""
        return self.engine.name if self.match is None else self.match[0].name

    @property
    def width(self) -> int:
        """See `Space.width`."""
        return self.program.cone.structure.n

    def bind(self, arrays: Sequence[Any], strict: bool) -> BoundCall:
        """See `Space.bind`."""
        values = self.reader.read(arrays, strict, raise_nonfinite=strict)
        chain = Chain(self.program.cone, values)
        scores = -np.broadcast_to(self.program.cone.q(chain.thetas()), (values.count, self.program.cone.structure.n))
        if not values.finite.all():
            scores[~values.finite] = np.nan
        return BoundCall(self, values.batch, values.count, scores, chain)

    def maximize(self, bound: BoundCall, scores: np.ndarray, calls: Calls) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """See `BoundCall.maximize`."""
        if self.match is not None:
            oracle, places = self.match
            values = np.empty(scores.shape)
            values[:, places] = scores if oracle.sense == "max" else -scores
            good = np.isfinite(values).all(axis=1)
            if good.all():
                x = oracle.solve(values)[:, places]
            else:
                x = np.full(scores.shape, np.nan)
                x[good] = oracle.solve(values[good])[:, places]
            return x, np.where(good, Status.SOLVED, Status.NONFINITE_INPUT).astype(np.int8), {}
        found: Found = self.engine.solve(-scores, calls.options)
        return found.x, found.status, {}

    def to_outputs(self, solutions: np.ndarray) -> list[np.ndarray]:
        """See `Space.to_outputs`."""
        return [o.pick(solutions) for o in self.outputs]

    def from_outputs(self, cotangents: Sequence[np.ndarray | None], rows: int) -> np.ndarray:
        """See `Space.from_outputs`."""
        out = np.zeros((rows, self.program.cone.structure.n))
        for o, g in zip(self.outputs, cotangents, strict=True):
            if g is not None:
                if o._gather is not None and o._gather_coefs is None and len(np.unique(o.cols)) == len(o.cols):
                    out[:, o._gather] += g
                else:
                    o.spread(g, out)
        return out

    def to_arguments(self, bound: BoundCall, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `Space.to_arguments`."""
        chain: Chain = bound.held
        channels: list[np.ndarray | None] = [None] * len(self.program.cone.channels)
        self.program.cone.q.adjoint(-gradient, channels, [len(r) == 1 and bound.count > 1 for r in chain.raw])
        return chain.to_parameters(channels)

    def value(self, bound: BoundCall, solutions: np.ndarray) -> np.ndarray:
        """See `Space.value`."""
        return self.program.value(bound.held.thetas(), solutions)

    @property
    def equalities(self) -> Any | None:
        """Rows of the program that are equalities, and variables that are fixed."""
        p = self.program.fixed
        rows = sp.csr_array(p.A[np.flatnonzero(p.low == p.high)])
        fixed = np.flatnonzero(p.lower == p.upper)
        pins = sp.csr_array((np.ones(len(fixed)), (np.arange(len(fixed)), fixed)), shape=(len(fixed), p.n))
        both: Any = sp.vstack([rows, pins])
        return both if both.shape[0] else None


class Constraints(Space):
    """A mixed-integer linear program with parameters in its constraints: the scores are the parameters themselves."""

    def __init__(self, program: DiscreteProgram, solver: str) -> None:
        self.program, self.solver = program, str(solver)
        self.parameters, self.outputs = program.cone.parameters, program.cone.outputs
        self.reader = Arguments(program.cone)
        self.kind = choose(self.solver, program.fixed)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.program, self.solver)

    @property
    def oracle(self) -> str:
        """See `Space.oracle`."""
        return self.kind.name

    @property
    def width(self) -> int:
        """See `Space.width`."""
        return self.program.cone.structure.n

    @property
    def noise_width(self) -> int:
        """See `Space.noise_width`."""
        return sum(p.size for p in self.parameters)

    def bind(self, arrays: Sequence[Any], strict: bool) -> BoundCall:
        """See `Space.bind`."""
        values = self.reader.read(arrays, strict, raise_nonfinite=strict)
        flat = [np.broadcast_to(f, (values.count, f.shape[1])) for f in values.flat]
        scores = np.concatenate(flat, axis=1) if flat else np.zeros((values.count, 0))
        scores[~values.finite] = np.nan
        return BoundCall(self, values.batch, values.count, scores)

    def maximize(self, bound: BoundCall, scores: np.ndarray, calls: Calls) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """See `BoundCall.maximize`."""
        n, count = self.program.cone.structure.n, len(scores)
        x, status = np.full((count, n), np.nan), np.full(count, Status.NONFINITE_INPUT, np.int8)
        rows = np.flatnonzero(np.isfinite(scores).all(axis=1))
        data = self.program.cone.bind(self._thetas(scores[rows]), len(rows))
        deadline = None if calls.options.time_limit is None else time.perf_counter() + calls.options.time_limit
        for k, row in enumerate(rows):
            options = calls.options
            if deadline is not None:
                options = replace(options, time_limit=max(1e-9, deadline - time.perf_counter()))
            instance = self.program.instance(data, k)
            found = choose(self.solver, instance)(instance).solve(data.q[k : k + 1], options)
            x[row], status[row] = found.x[0], found.status[0]
        return x, status, {}

    def _thetas(self, scores: np.ndarray) -> list[np.ndarray]:
        flat = np.split(scores, np.cumsum([p.size for p in self.parameters])[:-1], axis=1)
        return [flat[c.parameter] for c in self.program.cone.channels]

    def value(self, bound: BoundCall, solutions: np.ndarray) -> np.ndarray:
        """See `Space.value`."""
        return self.program.value(self._thetas(bound.scores), solutions)

    def to_outputs(self, solutions: np.ndarray) -> list[np.ndarray]:
        """See `Space.to_outputs`."""
        return [o.pick(solutions) for o in self.outputs]

    from_outputs = Costs.from_outputs

    def to_arguments(self, bound: BoundCall, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `Space.to_arguments`."""
        splits = np.cumsum([p.size for p in self.parameters])[:-1]
        return tuple(g.reshape((*bound.batch, *p.shape)) for g, p in zip(np.split(gradient, splits, axis=1), self.parameters, strict=True))

    @property
    def equalities(self) -> Any | None:
        """None: the scores are no costs."""
        return None


class Vectors(Space):
    """A black box; without a shape, its instances are vectors of any length."""

    channels = ()  # what a reader of arguments asks of a program

    def __init__(self, box: BlackBox) -> None:
        self.box = box
        shape = (-1,) if box.shape is None else box.shape
        self.parameters = (ParameterSpec(box.name, shape),)
        self.outputs = (OutputSpec("solution", shape, "primal"),)
        self.reader = Arguments(self)  # type: ignore[arg-type]
        self.sign = 1.0 if box.sense == "max" else -1.0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.box,)

    @property
    def oracle(self) -> str:
        """See `Space.oracle`."""
        return self.box.label

    def of_size(self, shape: tuple[int, ...]) -> Vectors:
        """The same with the shape that an argument has."""
        if self.box.shape is not None:
            return self
        if not shape:
            raise ShapeError(f"'{self.box.name}' needs at least one dimension", expected="(batch..., n)", got="()")
        fixed = Vectors(self.box)
        fixed.parameters = (ParameterSpec(self.box.name, (shape[-1],)),)
        fixed.outputs = (OutputSpec("solution", (shape[-1],), "primal"),)
        fixed.reader = Arguments(fixed)  # type: ignore[arg-type]
        return fixed

    def bind(self, arrays: Sequence[Any], strict: bool) -> BoundCall:
        """See `Space.bind`."""
        space = self.of_size(np.shape(arrays[0]))
        values = space.reader.read(arrays, strict, raise_nonfinite=strict)
        flat = values.flat[0].reshape(values.count, -1) if values.count else np.zeros((0, _size(space)))
        scores = flat if self.sign > 0 else -flat
        if not values.finite.all():
            scores = np.where(values.finite[:, None], scores, np.nan)
        return BoundCall(space, values.batch, values.count, scores)

    def maximize(self, bound: BoundCall, scores: np.ndarray, calls: Calls) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """See `BoundCall.maximize`."""
        o = calls.options
        values = scores if self.sign > 0 else -scores
        solver = calls.solver or self.box.solver
        answers = guarded(solver, values, self.parameters[0].shape, o.time_limit, o.executor, o.workers or 1)
        return answers.x, answers.status, answers.notes

    def value(self, bound: BoundCall, solutions: np.ndarray) -> np.ndarray:
        """See `Space.value`."""
        return (bound.scores * solutions).sum(axis=1) * self.sign

    def to_outputs(self, solutions: np.ndarray) -> list[np.ndarray]:
        """See `Space.to_outputs`."""
        return [solutions]

    def from_outputs(self, cotangents: Sequence[np.ndarray | None], rows: int) -> np.ndarray:
        """See `Space.from_outputs`."""
        (g,) = cotangents
        return np.zeros((rows, _size(self))) if g is None else g

    def to_arguments(self, bound: BoundCall, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
        """See `Space.to_arguments`."""
        out = gradient if self.sign > 0 else -gradient
        return (out.reshape((*bound.batch, *self.parameters[0].shape)),)

    @property
    def equalities(self) -> Any | None:
        """Those that the user states, or the oracle's own."""
        return self.box.equalities


def _size(space: Space) -> int:
    """Scalars of the first parameter."""
    return space.parameters[0].size
