"""The run time of a discrete problem: draw solutions, and estimate gradients, on numpy arrays; the only thing frameworks wrap."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from layercompiler.derivatives.perturbation.estimators import Draw, Estimator
from layercompiler.derivatives.perturbation.losses import Loss
from layercompiler.derivatives.perturbation.noise import generator
from layercompiler.errors import BuildError, OptionError, UnsupportedTransformError
from layercompiler.frameworks import layer
from layercompiler.plan.compiled import _fingerprint
from layercompiler.plan.discrete_report import describe, failure, info_of, report, worst
from layercompiler.plan.discrete_store import save
from layercompiler.plan.layer import result_type
from layercompiler.plan.spaces import BoundCall, Calls, Constraints, Costs, Space, Vectors
from layercompiler.programs.blackbox import BlackBox
from layercompiler.programs.cone import OutputSpec, ParameterSpec
from layercompiler.programs.discrete import DiscreteProgram
from layercompiler.solvers.engine import Options
from layercompiler.status import Solution, Status

SEED = 2  # words of a seed


@dataclass(frozen=True)
class Sample:
    """A draw for a batch.

    Attributes:
        outputs: Per output, batch + shape for mean outputs, batch + (samples,) + shape for all of them; NaN for failed instances.
        solutions: batch + (samples, d').
        noise: batch + (samples, d), or (samples, 0) where there is none.
        status: `Status` codes, batch shape: the worst of the samples.
    """

    outputs: tuple[np.ndarray, ...]
    solutions: np.ndarray
    noise: np.ndarray
    status: np.ndarray


class CompiledDiscrete:
    """A discrete problem with an estimator of its gradient, for any batch of parameter values.

    Args:
        problem: A `DiscreteProgram` or a `BlackBox`.
        estimator: How gradients are estimated.
        solver: "auto" (a named oracle where one certainly fits, else HiGHS) or the name of a mixed-integer engine.
        on_error: "raise", or "flag" for NaN outputs and zero gradients of failed instances.
        options: `time_limit`, `workers` and `executor` matter here; the time limit is that of each round of solves.

    Raises:
        BuildError: The estimator is not valid for parameters in the constraints.
    """

    layer_kind = "discrete.DiscreteLayer"

    def __init__(
        self,
        problem: DiscreteProgram | BlackBox,
        estimator: Estimator,
        solver: str = "auto",
        on_error: str = "raise",
        options: Options | None = None,
    ) -> None:
        if not isinstance(estimator, Estimator):
            raise OptionError(
                "the estimator is not an Estimator",
                where="estimator",
                expected="such as IMLE()",
                got=repr(estimator),
                mend="layercompiler.IMLE()",
            )
        self.problem, self.estimator, self.solver, self.on_error = problem, estimator, solver, on_error
        self.options = options or Options()
        if isinstance(problem, BlackBox):
            self.space: Space = Vectors(problem)
        elif problem.costs_only:
            self.space = Costs(problem, solver)
        else:
            if not estimator.constraints:
                raise BuildError(
                    "parameters enter the constraints, where a difference of solutions or an identity says nothing about them",
                    where=f"estimator {type(estimator).__name__}",
                    expected="parameters in the objective only, or an estimator that differentiates the noise",
                    mend="use layercompiler.Perturbed() or ScoreFunction(), or move the parameters into the objective",
                )
            self.space = Constraints(problem, solver)

    def __reduce__(self) -> tuple[Any, ...]:
        return CompiledDiscrete, (self.problem, self.estimator, self.solver, self.on_error, self.options)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledDiscrete:
        return self

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """The parameters in call order; -1 stands for any length."""
        return self.space.parameters

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """The outputs in order."""
        return self.space.outputs

    @property
    def fingerprint(self) -> str:
        """Digest of the problem, the estimator and the settings; a black box counts by the name of its solver."""
        if isinstance(self.problem, BlackBox):
            what = repr((self.problem.label, self.problem.sense, self.problem.shape))
        else:
            masks = self.problem.integer.tobytes() + self.problem.boolean.tobytes()
            what = _fingerprint(self.problem.cone) + hashlib.sha256(masks).hexdigest()
        return hashlib.sha256(repr((what, self.estimator, self.solver, self.on_error)).encode()).hexdigest()[:32]

    def sized(self, shapes: Sequence[tuple[int, ...]]) -> Space:
        """The problem for arguments of the given shapes."""
        return self.space.of_size(shapes[0]) if isinstance(self.space, Vectors) else self.space

    def batch_shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Broadcast batch shape of arguments of the given shapes."""
        return self.sized(shapes).reader.batch_shape(shapes)

    def arguments(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """Values in parameter order from positional and named arguments."""
        return self.space.reader.bind(args, kwargs)

    def sample(self, arrays: Sequence[Any], seed: Any = None, *, solver: Any = None, options: Options | None = None) -> Sample:
        """Draw solutions.

        Args:
            arrays: One array per parameter, (batch..., *shape), leading dimensions broadcast.
            seed: Words (..., w) of the seed; leading dimensions belong to the leading dimensions of the batch (vmap), each with a
                generator of its own. None for a fresh seed.
            solver: Stands in for the black box's solver (bindings wrap it for native arrays).
            options: Instead of the compiled ones.

        Raises:
            SolveError: With on_error="raise", when an instance is not solved.
        """
        words = np.random.SeedSequence().generate_state(SEED) if seed is None else np.asarray(seed)
        arrays, batch = self._aligned(arrays, words.shape[:-1])
        bound = self.space.bind(arrays, self.on_error == "raise")
        calls = Calls(bound, options or self.options, solver)
        lead = words.shape[:-1]
        wide = np.broadcast_to(words, (*batch[: len(lead)], words.shape[-1])).reshape(-1, words.shape[-1])
        with np.errstate(invalid="ignore"):
            if bound.count:
                draw = self.estimator.draw(bound.scores, calls, [generator(w) for w in wide] if self.estimator.random else [])
            else:
                draw = self._empty(bound)
        rows = self.estimator.samples if self.estimator.random else 1
        status = worst(calls.status.reshape(bound.count, rows) if bound.count else np.zeros((0, rows), np.int8))
        if self.on_error == "raise" and (status != Status.SOLVED).any():
            raise failure(bound, status, calls, rows, "its solve")
        solutions = draw.solutions
        bad = status != Status.SOLVED
        if bad.any():
            solutions = np.where(bad[:, None, None], np.nan, solutions)
        S, d = solutions.shape[1:]
        mean = self.estimator.output == "mean"
        shown = (solutions.mean(axis=1) if S > 1 else solutions[:, 0]) if mean else solutions.reshape(-1, d)
        parts = bound.space.to_outputs(shown)
        outputs = [p.reshape((*batch, *(() if mean else (S,)), *o.shape)) for p, o in zip(parts, bound.space.outputs, strict=True)]
        return Sample(
            tuple(outputs), solutions.reshape((*batch, S, d)), draw.noise.reshape((*batch, *draw.noise.shape[1:])), status.reshape(batch)
        )

    def pull(
        self,
        arrays: Sequence[Any],
        solutions: np.ndarray,
        noise: np.ndarray,
        cotangents: Sequence[Any],
        *,
        solver: Any = None,
        options: Options | None = None,
    ) -> tuple[np.ndarray, ...]:
        """Estimate the gradients of the arguments.

        Args:
            arrays: As for `sample`.
            solutions: Of the sample; likewise `noise`.
            noise: See `solutions`.
            cotangents: One per output, of its shape; None for zero.
            solver: As for `sample`; likewise `options`.
            options: See `solver`.

        Returns:
            One gradient per parameter, batch + shape: not summed over broadcast dimensions.
        """
        batch, (S, d) = solutions.shape[:-2], solutions.shape[-2:]
        arrays, batch = self._aligned(arrays, batch)
        bound = self.space.bind(arrays, False)
        calls = Calls(bound, options or self.options, solver)
        count = bound.count
        if not count:
            return bound.space.to_arguments(bound, np.zeros(bound.scores.shape))
        mean = self.estimator.output == "mean"
        width = 1 if mean else S
        flat = [
            None
            if g is None
            else np.broadcast_to(np.asarray(g, dtype=float), (*batch, *(() if mean else (S,)), *o.shape)).reshape(count * width, -1)
            for g, o in zip(cotangents, bound.space.outputs, strict=True)
        ]
        draw = Draw(
            np.broadcast_to(solutions, (*batch, S, d)).reshape(count, S, d),
            np.broadcast_to(noise, (*batch, *noise.shape[-2:])).reshape(count, *noise.shape[-2:]),
        )
        dy = bound.space.from_outputs(flat, count * width).reshape(count, width, -1)
        live = np.isfinite(bound.scores).all(axis=1) & np.isfinite(draw.solutions).all(axis=(1, 2))
        if live.all():
            gradient = self._gradient(bound, bound.scores, draw, dy, calls, np.arange(count))
        else:
            rows = np.flatnonzero(live)
            gradient = np.zeros(bound.scores.shape)
            if len(rows):
                part = Draw(draw.solutions[rows], draw.noise[rows])
                gradient[rows] = self._gradient(bound, bound.scores[rows], part, dy[rows], calls, rows)
        return bound.space.to_arguments(bound, gradient)

    def sizes(self, space: Space) -> list[tuple[int, ...]]:
        """Shapes of a `Sample` less the batch: one per output, of the solutions, of the noise."""
        S = self.estimator.samples
        lead = () if self.estimator.output == "mean" else (S,)
        inner = [(*lead, *o.shape) for o in space.outputs]
        return [*inner, (S, space.width), (S, space.noise_width if self.estimator.random else 0)]

    def check_expectation(self) -> None:
        """Whether the estimator returns all samples, as `expect` needs.

        Raises:
            OptionError: It does not.
        """
        if self.estimator.output != "all":
            raise OptionError("an expectation needs all samples", expected="estimator with output='all'", got=repr(self.estimator.output))

    def weights(self, arrays: Sequence[Any], solutions: np.ndarray, noise: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
        """Score-function gradients of E f for values f (batch..., samples) of the samples; one per parameter, batch + shape.

        Raises:
            OptionError: The estimator has no score function.
        """
        weighted = getattr(self.estimator, "weighted", None)
        if weighted is None:
            raise OptionError(
                "the expectation of a function needs an estimator with a score function",
                expected="ScoreFunction or Perturbed",
                got=type(self.estimator).__name__,
            )
        arrays, batch = self._aligned(arrays, solutions.shape[:-2])
        bound = self.space.bind(arrays, False)
        shape = (bound.count, *noise.shape[-2:])
        gradient = weighted(
            np.broadcast_to(noise, (*batch, *noise.shape[-2:])).reshape(shape),
            np.broadcast_to(values, (*batch, values.shape[-1])).reshape(bound.count, -1),
        )
        gradient = bound.space.project(gradient, getattr(self.estimator, "project", "none"))
        bad = ~np.isfinite(gradient).all(axis=1)
        gradient[bad] = 0.0
        return bound.space.to_arguments(bound, gradient)

    def loss(
        self, loss: Loss, arrays: Sequence[Any], targets: dict[str, Sequence[Any]], seed: Any = None
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Values (batch) of a loss and its gradients, one per parameter, batch + shape.

        Args:
            loss: The loss.
            arrays: Predicted parameters.
            targets: By name, what `loss.needs`, each a sequence: "true" one array per parameter; "solution" and "pool" one per output.
            seed: As for `sample`.

        Raises:
            OptionError: A target is missing or unknown.
            SolveError: With on_error="raise", when an instance is not solved.
        """
        self._check_loss(loss, targets)
        arrays, batch = self._aligned(arrays, ())
        bound = self.space.bind(arrays, self.on_error == "raise")
        calls = Calls(bound, self.options)
        rows: dict[str, np.ndarray] = {}
        if "true" in targets:
            true, _ = self._aligned(targets["true"], ())
            wide = [np.broadcast_to(a, np.shape(b)) for a, b in zip(true, arrays, strict=True)]
            rows["true"] = self.space.bind(wide, self.on_error == "raise").scores
        for name in ("solution", "pool"):
            if name in targets:
                outputs = bound.space.outputs
                lead = batch if name == "solution" else np.shape(targets[name][0])[:1]
                flat = [np.broadcast_to(a, (*lead, *o.shape)).reshape(-1, o.size) for a, o in zip(targets[name], outputs, strict=True)]
                rows[name] = bound.space.from_outputs([np.asarray(f, dtype=float) for f in flat], len(flat[0]))
        words = np.random.SeedSequence().generate_state(SEED) if seed is None else np.atleast_1d(seed)
        if not bound.count:
            return np.zeros(batch), bound.space.to_arguments(bound, np.zeros(bound.scores.shape))
        with np.errstate(invalid="ignore"):
            value, gradient = loss.evaluate(bound.scores, rows, calls, self.estimator, [generator(words)])
        bad = ~(np.isfinite(value) & np.isfinite(gradient).all(axis=1))
        if bad.any() and self.on_error == "raise":
            codes = calls.status.reshape(bound.count, -1)
            status = np.where(bad & (worst(codes) == Status.SOLVED), Status.FAILED, worst(codes)).astype(np.int8)
            raise failure(bound, status, calls, codes.shape[1], "a solve of the loss")
        value, gradient = np.where(bad, np.nan, value), np.where(bad[:, None], 0.0, gradient)
        return value.reshape(batch), bound.space.to_arguments(bound, gradient)

    def _check_loss(self, loss: Loss, targets: dict[str, Any]) -> None:
        if not isinstance(loss, Loss):
            raise OptionError("the loss is not a Loss", expected="such as layercompiler.losses.SPOPlus()", got=type(loss).__name__)
        allowed = {*loss.needs, *(("solution",) if "true" in loss.needs else ())}
        if set(loss.needs) - targets.keys() or targets.keys() - allowed:
            raise OptionError(f"{type(loss).__name__} takes other targets", expected=str(list(loss.needs)), got=str(sorted(targets)))
        if isinstance(self.space, Constraints):
            raise BuildError("this loss needs parameters that enter the objective only", where=type(loss).__name__)
        if isinstance(self.space, Costs) and self.space.program.quadratic is not None:
            raise BuildError(
                "losses on solutions are stated for linear objectives",
                where=type(loss).__name__,
                got="a quadratic objective",
                mend="compute a loss from the layer's outputs, in your framework",
            )

    def targets(self, named: dict[str, Any]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
        """Targets as sequences, and what is left of the names: parameters."""
        found = {k: named[k] for k in ("true", "solution", "pool") if k in named}
        rest = {k: v for k, v in named.items() if k not in found}
        return {k: list(v) if isinstance(v, (tuple, list)) else [v] for k, v in found.items()}, rest

    def solve(self, *args: Any, options: Options | dict[str, Any] | None = None, **named: Any) -> Solution:
        """The optimal solution without noise, with status and objective."""
        began = time.perf_counter()
        arrays, batch = self._aligned(self.arguments(args, named), ())
        bound = self.space.bind(arrays, self.on_error == "raise")
        calls = Calls(bound, self.options if options is None else Options.of(options))
        x = calls(bound.scores)
        if self.on_error == "raise" and (calls.status != Status.SOLVED).any():
            raise failure(bound, calls.status, calls, 1, "its solve")
        parts = bound.space.to_outputs(x)
        outputs = tuple(p.reshape((*batch, *o.shape)) for p, o in zip(parts, bound.space.outputs, strict=True))
        values = MappingProxyType({o.name: a for o, a in zip(bound.space.outputs, outputs, strict=True)})
        return Solution(
            outputs, values, bound.space.value(bound, x).reshape(batch), info_of(calls.status.reshape(batch), bound.space.oracle, began)
        )

    def describe(self) -> str:
        """One line: parameters, outputs, oracle, estimator."""
        return describe(self)

    def __repr__(self) -> str:
        return f"CompiledDiscrete({self.describe()})"

    def report(self) -> str:
        """What the compiler found."""
        return report(self)

    def save(self, path: str | Path) -> None:
        """Write the compiled problem to one file that `layercompiler.load` reads, also where CVXPY is not installed.

        Raises:
            StoreError: The solver, the estimator or its noise is the user's own code, which no file can hold.
        """
        save(path, self)

    def to(self, framework: str) -> Any:
        """The same compiled problem as a layer of a framework."""
        return layer(self, framework)

    def _gradient(self, bound: BoundCall, scores: np.ndarray, draw: Draw, dy: np.ndarray, calls: Calls, rows: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            gradient = self.estimator.pull(scores, draw, dy, calls)
        bad = ~np.isfinite(gradient).all(axis=1)
        if bad.any():
            if self.on_error == "raise":
                status = np.full(bound.count, Status.SOLVED, np.int8)
                codes = calls.status.reshape(len(scores), -1)
                status[rows[bad]] = worst(codes)[bad]
                raise failure(bound, status, calls, codes.shape[1], "a solve of its backward pass")
            gradient[bad] = 0.0
        return gradient

    def _aligned(self, arrays: Sequence[Any], lead: tuple[int, ...]) -> tuple[list[Any], tuple[int, ...]]:
        """Arrays broadcast to one batch shape, which `lead` may widen from the left."""
        shapes = [np.shape(a) for a in arrays]
        space = self.sized(shapes)
        batch = space.reader.batch_shape(shapes)
        if len(lead):
            wide = (1,) * (len(lead) - len(batch)) + batch
            batch = np.broadcast_shapes(wide, tuple(lead) + (1,) * (len(wide) - len(lead)))
        return [np.broadcast_to(a, (*batch, *p.shape)) for a, p in zip(arrays, space.parameters, strict=True)], batch

    def _empty(self, bound: BoundCall) -> Draw:
        d = bound.scores.shape[1]
        out = d if not isinstance(self.space, Constraints) else self.space.program.cone.structure.n
        return Draw(np.zeros((0, self.estimator.samples, out)), np.zeros((0, self.estimator.samples, d if self.estimator.random else 0)))


def refuse_second(*_: Any) -> Any:
    """Raise for the derivative of an estimate.

    Raises:
        UnsupportedTransformError: Always.
    """
    raise UnsupportedTransformError(
        "an estimate of a gradient has no derivative: solutions of discrete problems are piecewise constant",
        mend="use first derivatives only (no second derivative through this layer)",
    )


class DiscreteLayer:
    """A discrete problem as a function of numpy arrays."""

    def __init__(self, compiled: CompiledDiscrete) -> None:
        self.compiled = compiled

    def __call__(self, *args: Any, seed: Any = None, **named: Any) -> tuple[np.ndarray, ...]:
        """Sampled solutions for one array per parameter, (batch..., *shape), by position or name; a tuple, one per output.

        Args:
            *args: The arrays.
            seed: A whole number or several; None for a fresh one.
            **named: Arrays by name.
        """
        arrays = self.compiled.arguments(args, named)
        outputs = self.compiled.sample(arrays, None if seed is None else np.atleast_1d(seed)).outputs
        dtype = result_type(arrays)
        return tuple(o.astype(dtype, copy=False) for o in outputs)

    def solve(self, *args: Any, **named: Any) -> Solution:
        """Solve without noise, and return values and status."""
        return self.compiled.solve(*args, **named)

    def report(self) -> str:
        """What the compiler found."""
        return self.compiled.report()

    def __repr__(self) -> str:
        return f"DiscreteLayer[numpy]({self.compiled.describe()})"
