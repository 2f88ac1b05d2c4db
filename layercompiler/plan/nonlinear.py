"""The run time of a nonlinear problem written in a modelling language: a least-squares layer between two graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import numpy as np

from layercompiler import arrays, frameworks
from layercompiler.errors import ShapeError, nearest
from layercompiler.expressions.graph import Graph
from layercompiler.plan import report
from layercompiler.plan.arguments import Arguments, check_domain, real
from layercompiler.plan.least_squares import CompiledLeastSquares, HostLayer
from layercompiler.plan.minimizer import LeastSquaresSolution
from layercompiler.programs.nonlinear import NonlinearProgram
from layercompiler.solvers.least_squares import LeastSquaresOptions

_SIGNS = frozenset(("nonneg", "nonpos", "pos", "neg"))


class CompiledNonlinear:
    """A nonlinear problem compiled once; immutable. `.to(framework)` makes a layer, and numpy arrays go in and out of `solve`.

    Args:
        program: The compiled problem.
        method: "auto", "levenberg_marquardt", "gauss_newton" or "dogleg".
        on_error: "raise" or "flag".
        options: See `LeastSquaresOptions`.
    """

    layer_kind = "nonlinear.NonlinearLayer"

    def __init__(
        self, program: NonlinearProgram, method: str = "auto", on_error: str = "raise", options: LeastSquaresOptions | None = None
    ) -> None:
        self.program, self.on_error = program, on_error
        self.inner = CompiledLeastSquares(program.inner, method, on_error, options)

    @cached_property
    def arguments(self) -> Arguments:
        """Reads the arguments of calls."""
        return Arguments(cast(Any, SimpleNamespace(parameters=self.program.parameters, channels=())))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in call order."""
        return tuple(p.name for p in self.program.parameters)

    def to(self, framework: str) -> Any:
        """A layer of a framework."""
        return frameworks.layer(self, framework)

    def solve(self, *args: Any, init: Mapping[str, Any] | None = None, **named: Any) -> LeastSquaresSolution:
        """Solve for numpy arrays; see `NonlinearLayer.solve` of the frameworks."""
        return self.to("numpy").solve(*args, init=init, **named)

    def describe(self) -> str:
        """One line."""
        return self.inner.describe()

    def report(self) -> str:
        """What was recognised, and how it is solved and differentiated."""
        program, inner = self.program, self.program.inner
        sense = "maximise" if program.maximize else "minimise"
        lines = [
            f"problem       nonlinear least squares, {sense}, {len(program.parameters)} parameters",
            f"recognised    {len(program.terms)} terms",
            *(f"              {term}" for term in program.terms),
            f"before        {len(program.before.nodes)} operations on parameters only, computed once per call",
        ]
        return "\n".join([*lines, *report.least_squares(inner), *self.inner.choices()])

    # The call, in any framework ------------------------------------------------------------------------------------------

    @cached_property
    def answer(self) -> Graph:
        """What comes after the solve, without the objective."""
        return self.program.after.select(self.program.after.outputs[:-1])

    def call(
        self, xp: Any, theta: Sequence[Any], init: Mapping[str, Any] | None, solve: Callable[..., Any], told: bool = False
    ) -> tuple[Any, ...]:
        """Outputs and, last, the objective where it is to be `told`.

        Args:
            xp: Array functions.
            theta: Parameters, (batch..., *shape).
            init: Starts by the user's names of variables, host arrays (batch..., *shape).
            solve: Takes (derived parameters, starts of the inner program or None) and returns the unknowns.
            told: See above.
        """
        program = self.program
        if self.inner.options.check_domain and not xp.traced(*theta):
            self._check(xp, theta)
        after = program.after if told else self.answer
        batch = self.arguments.batch_shape([tuple(t.shape) for t in theta])
        start = None if init is None else self.starts(xp, theta, init)
        unknowns = list(solve(program.before.evaluate(xp, theta), start))
        if init is not None:
            lead = len(unknowns[0].shape) - len(program.inner.variables[0].shape)
            batch = np.broadcast_shapes(batch, tuple(unknowns[0].shape)[:lead])
        good = None
        if self.on_error == "flag" and any(k >= len(unknowns) for k in after.inputs()):
            good, unknowns = _flagged(xp, unknowns, [v.shape for v in program.inner.variables])
        out = []
        for value, shape in zip(after.evaluate(xp, [*unknowns, *theta]), after.shapes(), strict=True):
            full = (*batch, *shape)
            value = value if tuple(value.shape) == full else xp.broadcast_to(value, full)
            if good is not None:
                value = xp.where(xp.reshape(good, (*good.shape, *(1,) * len(shape))), value, xp.full_like(value, np.nan))
            out.append(value)
        return tuple(out)

    def _check(self, xp: Any, theta: Sequence[Any]) -> None:
        for p, t in zip(self.program.parameters, theta, strict=True):
            if p.attributes:  # matrices that were single numbers are symmetric to single precision only
                kind = np.float64 if set(p.attributes) <= _SIGNS else np.float32
                check_domain(p, xp.numpy(t), tuple(t.shape)[: len(t.shape) - len(p.shape)], np.dtype(kind))

    def starts(self, xp: Any, theta: Sequence[Any], init: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Starts of the unknowns from starts of the user's variables.

        Raises:
            ShapeError: An unknown variable or a wrong shape.
        """
        program, host = self.program, arrays.get("numpy")
        given: dict[str, np.ndarray] = {}
        for name, value in init.items():
            if name not in program.variables:
                raise ShapeError(
                    f"there is no variable '{name}' to start",
                    where="init",
                    expected=f"some of {list(program.variables)}",
                    mend=nearest(name, program.variables),
                )
            array, shape = real(name, value), program.variables[name]
            if tuple(array.shape[array.ndim - len(shape) :]) != shape:
                raise ShapeError(
                    f"the start of '{name}' has the wrong shape", where="init", expected=f"{shape} after any batch", got=str(array.shape)
                )
            given[name] = array
        found: dict[str, np.ndarray] = {}
        for k, (name, graph) in enumerate(zip(program.variables, program.start, strict=True)):
            if name in given:
                count = len(program.variables)
                read = graph.inputs()  # seldom a parameter, and a traced one has no numbers
                inputs: list[Any] = [np.asarray(xp.numpy(t), np.float64) if count + i in read else None for i, t in enumerate(theta)]
                inputs = [given[name] if i == k else None for i in range(count)] + inputs
                found[program.inner.variables[k].name] = np.asarray(graph.evaluate(host, inputs)[0])
        return found

    def solution(self, values: Sequence[Any], inner: LeastSquaresSolution) -> LeastSquaresSolution:
        """The answer of `solve` from what `call` returned."""
        *outputs, value = values
        named = MappingProxyType(dict(zip(self.program.outputs, outputs, strict=True)))
        return LeastSquaresSolution(tuple(outputs), named, value, inner.info)


def _flagged(xp: Any, unknowns: list[Any], shapes: list[tuple[int, ...]]) -> tuple[Any, list[Any]]:
    """Which instances have a solution, and unknowns that are ones where there is none."""
    good: Any = None
    for z, shape in zip(unknowns, shapes, strict=True):
        axes = tuple(range(-len(shape), 0))
        whole = xp.sum(z, axis=axes) if axes else z
        good = xp.isfinite(whole) if good is None else good & xp.isfinite(whole)
    safe = []
    for z, shape in zip(unknowns, shapes, strict=True):
        safe.append(xp.where(xp.reshape(good, (*good.shape, *(1,) * len(shape))), z, xp.ones_like(z)))
    return good, safe


class NonlinearLayer(HostLayer):
    """A compiled nonlinear problem as a function of numpy arrays; the derivatives inside come from whichever framework is installed."""

    def __init__(self, compiled: CompiledNonlinear) -> None:
        super().__init__(compiled, compiled.program.outputs)
