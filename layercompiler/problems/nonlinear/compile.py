"""A nonconvex CVXPY problem becomes a `NonlinearProgram`: a least-squares program between two graphs of the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cvxpy as cp
import numpy as np

from layercompiler.errors import NotLeastSquaresError, ParameterMismatchError
from layercompiler.expressions import Builder, Graph
from layercompiler.expressions.movement import concatenate
from layercompiler.expressions.sparsity import color, columns_of, pattern
from layercompiler.manifolds.euclidean import Vectors
from layercompiler.problems.convex import fix, listed_parameters, parameter_spec
from layercompiler.problems.nonlinear.recognize import Recognizer, Term
from layercompiler.problems.nonlinear.unknowns import Solved, Unknowns
from layercompiler.problems.notation import text
from layercompiler.programs import robust
from layercompiler.programs.least_squares import Argument, Block, LeastSquaresProgram, ParameterSpec, Sparsity, VariableSpec
from layercompiler.programs.nonlinear import GraphResidual, NonlinearProgram

_LOSSES = {kind.name: kind for kind in (robust.Huber, robust.PseudoHuber, robust.Cauchy, robust.Welsch, robust.GemanMcClure)}
_MOVEMENT = frozenset(("gather", "slice", "reshape", "permute", "broadcast", "pad", "concatenate"))
_DENSE = 0.5  # share of nonzeros from which the pattern of a Jacobian is not worth its indices


def compile_nonlinear(
    problem: cp.Problem, parameters: Sequence[cp.Parameter] | None = None, outputs: Sequence[Any] | None = None
) -> NonlinearProgram:
    """Compile a CVXPY problem whose objective is a sum of squares and robust losses of smooth expressions.

    Args:
        problem: Any problem with such an objective and constraints on single entries of variables; parameters may enter in any way.
        parameters: Parameters in call order; None for all. Parameters left out are constants and need a `.value`.
        outputs: Variables, expressions of variables and parameters, or `problem.objective`; None for all variables. The `.value` of a
            variable, where it has one, is where the solve starts.

    Raises:
        NotLeastSquaresError: A term of the objective is no square, or a constraint is no bound; the error names it.
        UnsupportedExpressionError: An atom has no smooth form; the error names the subexpression.
        IntegerVariableError: Boolean or integer variables.
        ParameterMismatchError: A listed parameter or output is not in the problem, or a constant has no value.
    """
    listed = listed_parameters(problem, parameters)
    fixed, constants = fix(problem, listed)
    variables = problem.variables()
    unknowns = Unknowns(variables, listed, {}, fixed.constraints)
    terms = Recognizer(unknowns.translator).objective(fixed.objective)
    if not terms:
        raise NotLeastSquaresError("the objective has no term with a variable", where=text(problem.objective))
    wanted = list(variables) if outputs is None else list(outputs)
    after = [unknowns.translator.node(_output(item, problem, fixed, constants)) for item in [*wanted, problem.objective]]
    return _program(unknowns, terms, listed, after, wanted, problem)


def _output(item: Any, problem: cp.Problem, fixed: cp.Problem, constants: dict[int, Any]) -> Any:
    if isinstance(item, cp.Minimize | cp.Maximize):
        if item is not problem.objective:
            raise ParameterMismatchError("an output is an objective of another problem", where=str(item), mend="pass `problem.objective`")
        return fixed.objective.expr
    if not isinstance(item, cp.Expression):
        raise ParameterMismatchError(
            "an output is neither a variable, an expression nor the problem's objective",
            where=str(item),
            got=type(item).__name__,
            mend="list the cvxpy objects themselves, as in variables=[x, problem.objective]",
        )
    known = {v.id for v in problem.variables()} | {p.id for p in problem.parameters()}
    missing = [leaf.name() for leaf in [*item.variables(), *item.parameters()] if leaf.id not in known]
    if missing:
        duals = any(v is item for c in problem.constraints for v in c.dual_variables)
        raise ParameterMismatchError(
            f"'{missing[0]}' is not in the problem",
            where=f"output {text(item)}",
            mend="a nonlinear problem has no dual variables to return" if duals else "use variables and parameters of the problem",
        )
    return item.tree_copy(id_objects=dict(constants)) if constants else item


def _program(unknowns: Unknowns, terms: list[Term], listed: Any, after: list[int], wanted: list[Any], problem: Any) -> NonlinearProgram:
    builder, count = unknowns.builder, len(unknowns.solved)
    moving = _moving(builder, count)
    split = _Split(builder, moving, count, listed)
    blocks = [_block(split, loss, [t for t in terms if t.loss == loss], unknowns.solved) for loss in dict.fromkeys(t.loss for t in terms)]
    names = [u.variable.name() for u in unknowns.variables]
    specs = tuple(_spec(name, solved) for name, solved in zip(names, unknowns.solved, strict=True))
    inner = LeastSquaresProgram(specs, tuple(split.specs), tuple(blocks), tuple(names), scale=2.0)
    return NonlinearProgram(
        inner=inner,
        parameters=tuple(parameter_spec(p) for p in listed),
        before=_renumbered(builder.graph(split.sources), count),
        after=builder.graph(after),
        outputs=tuple(
            item.name() if isinstance(item, cp.Variable) else "value" if isinstance(item, cp.Minimize | cp.Maximize) else text(item)
            for item in wanted
        ),
        variables={name: tuple(u.variable.shape) for name, u in zip(names, unknowns.variables, strict=True)},
        start=tuple(unknowns.start(k) for k in range(len(names))),
        maximize=isinstance(problem.objective, cp.Maximize),
        terms=tuple(f"{t.loss}: {t.source}, {builder.nodes[t.inner].size} rows" for t in terms),
    )


def _spec(name: str, solved: Solved) -> VariableSpec:
    width = int(np.prod(solved.shape[1:], dtype=int)) if len(solved.shape) > 1 else 1
    return VariableSpec(name, Vectors(width), solved.shape, solved.start, None, solved.lower, solved.upper)


def _moving(builder: Builder, count: int) -> list[bool]:
    """Which nodes depend on a variable (inputs below `count`)."""
    found: list[bool] = []
    for node in builder.nodes:
        found.append(node.options[0] < count if node.operation == "input" else any(found[k] for k in node.arguments))
    return found


def _renumbered(graph: Graph, count: int) -> Graph:
    """Inputs count, count + 1, ... as 0, 1, ..."""
    builder = Builder()
    inputs = {k: builder.input(k - count, shape) for k, shape in graph.inputs().items()}
    return builder.graph(builder.append(graph, inputs))


class _Split:
    """Cuts a graph where the variables begin: what depends on parameters only is computed once per call.

    Attributes:
        sources: Nodes that become the parameters of the inner program.
        specs: Their specs.
    """

    def __init__(self, builder: Builder, moving: list[bool], count: int, listed: Any) -> None:
        self.builder, self.moving, self.count = builder, moving, count
        self.names = [p.name() for p in listed]
        self.sources: list[int] = []
        self.specs: list[ParameterSpec] = []

    def raw(self, k: int) -> bool:
        """Whether a node only moves entries of parameters and constants: not worth to be kept beside them."""
        node = self.builder.nodes[k]
        return node.operation in ("input", "constant") or (node.operation in _MOVEMENT and all(self.raw(a) for a in node.arguments))

    def parameter(self, k: int) -> int:
        """The position of a node among the inner parameters."""
        if k not in self.sources:
            node = self.builder.nodes[k]
            name = self.names[node.options[0] - self.count] if node.operation == "input" else f"derived {len(self.sources)}"
            self.sources.append(k)
            self.specs.append(ParameterSpec(name, node.shape))
        return self.sources.index(k)

    def inner(self, outputs: Sequence[int]) -> tuple[Graph, list[int], list[int]]:
        """The graph of some nodes with inner parameters as inputs: (graph, variables read, parameters read).

        Inputs are the variables read, in order, then the parameters read.
        """
        needed: set[int] = set()
        stack: list[int] = list(outputs)
        variables: set[int] = set()
        parameters: list[int] = []
        while stack:
            k = stack.pop()
            if k in needed:
                continue
            needed.add(k)
            node = self.builder.nodes[k]
            if node.operation == "input" and self.moving[k]:
                variables.add(node.options[0])
            elif node.operation == "constant":
                continue
            elif not self.moving[k] and (node.operation == "input" or not self.raw(k)):
                parameters.append(k)
            else:
                stack.extend(node.arguments)
        used = sorted(variables)
        places = sorted({self.parameter(k) for k in sorted(parameters)})
        made, position = Builder(), {}
        for k in sorted(needed):
            node = self.builder.nodes[k]
            if node.operation == "input" and self.moving[k]:
                position[k] = made.input(used.index(node.options[0]), node.shape)
            elif k in parameters:
                position[k] = made.input(len(used) + places.index(self.parameter(k)), node.shape)
            elif node.operation == "constant":
                position[k] = made.constant(node.arrays[0])
            else:
                position[k] = made.call(node.operation, *(position[a] for a in node.arguments), options=node.options, arrays=node.arrays)
        return made.graph([position[k] for k in outputs]), used, places


def _block(split: _Split, loss: str, terms: list[Term], solved: Sequence[Solved]) -> Block:
    builder = split.builder
    split.moving.extend(_moving(builder, split.count)[len(split.moving) :])
    root = concatenate(builder, [t.inner for t in terms])
    split.moving.extend(_moving(builder, split.count)[len(split.moving) :])
    graph, on, places = split.inner([root])
    kind = None if loss == "square" else _LOSSES[loss]()
    radius = None if kind is None else _argument(split, [t.radius for t in terms if t.radius is not None])
    if radius is not None and radius.value is not None and not (radius.value > 0).all():
        raise NotLeastSquaresError(
            "the radius of a robust loss is not positive", where=terms[0].source, expected="numbers > 0", got=f"{radius.value.min():g}"
        )
    mass = _argument(split, [t.weight for t in terms])
    if mass.value is not None and np.all(mass.value == 1):
        mass = None
    shapes = [solved[k].shape for k in on]
    starts, width = columns_of(shapes)
    structure = pattern(graph, starts, width)
    sparsity = None
    if structure.nnz < _DENSE * structure.shape[0] * structure.shape[1]:
        found = np.repeat(np.arange(structure.shape[0]), np.diff(structure.indptr))
        sparsity = Sparsity(found, structure.indices.astype(np.int64), color(structure))
    return Block(
        name=f"{loss} of {', '.join(t.source for t in terms)}",
        residual=GraphResidual(graph),
        on=tuple(on),
        dim=structure.shape[0],
        arguments=tuple(Argument(parameter=k) for k in places),
        robust=kind,
        radius=radius,
        mass=mass,
        separable=True,
        sparsity=sparsity,
    )


def _argument(split: _Split, nodes: Sequence[int]) -> Argument:
    """Nodes of parameters only, one after another, as an argument of a block."""
    builder = split.builder
    node = concatenate(builder, list(nodes))
    split.moving.extend(_moving(builder, split.count)[len(split.moving) :])
    value = builder.value(node)
    return Argument(value=value) if value is not None else Argument(parameter=split.parameter(node))
