"""A least-squares program between two graphs: what a nonconvex problem in a modelling language is compiled to.

    theta --before--> parameters of the inner program --solve--> unknowns --after, with theta--> outputs

`before` computes what depends on parameters only (weights, radii, products), `after` what the user asked for from what was solved for. Both
are differentiated by the framework, the solve by the implicit function theorem.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from layercompiler.expressions.graph import Graph
from layercompiler.programs.cone import ParameterSpec
from layercompiler.programs.least_squares import LeastSquaresProgram


@dataclass(frozen=True, eq=False)
class GraphResidual:
    """A graph with one value (m,) as the residual of a block; variables are the first inputs, arguments the others.

    It takes any leading batch dimensions.
    """

    graph: Graph

    def __call__(self, xp: Any, *inputs: Any) -> Any:
        """The residual (batch..., m)."""
        return self.graph.evaluate(xp, inputs)[0]


@dataclass(frozen=True)
class NonlinearProgram:
    """A compiled nonlinear problem.

    Attributes:
        inner: What is solved; its parameters are the values of `before`, its variables the first inputs of `after`.
        parameters: As the user declared them, in call order.
        before: Input k is parameter k.
        after: Inputs are the unknowns, then the parameters; values are the outputs, and last the objective.
        outputs: Names of the outputs.
        variables: Shapes of the user's variables by name; each has one unknown.
        start: For each variable the graph from its value (input k) and the parameters (after the variables) to its unknown.
        maximize: Whether the user wrote a maximisation.
        terms: What was recognised, one line per term.
    """

    inner: LeastSquaresProgram
    parameters: tuple[ParameterSpec, ...]
    before: Graph = field(repr=False)
    after: Graph = field(repr=False)
    outputs: tuple[str, ...]
    variables: Mapping[str, tuple[int, ...]]
    start: tuple[Graph, ...] = field(repr=False)
    maximize: bool
    terms: tuple[str, ...]
