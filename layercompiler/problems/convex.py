"""A disciplined convex (or geometric) CVXPY problem becomes a `ConeProgram`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from layercompiler.errors import BuildError, NotAProblemError, ParameterMismatchError
from layercompiler.problems import discipline
from layercompiler.problems.canonical import Canonical, canonicalize
from layercompiler.programs.affine import AffineMap, Channel
from layercompiler.programs.cone import ConeProgram, OutputSpec, ParameterSpec, Structure

_DECLARED = ("nonneg", "nonpos", "pos", "neg", "symmetric", "PSD", "NSD", "diag")


def compile_convex(
    problem: cp.Problem,
    parameters: Sequence[cp.Parameter] | None = None,
    outputs: Sequence[Any] | None = None,
    gp: bool | None = None,
) -> ConeProgram:
    """Compile a CVXPY problem into a parametrised cone program.

    Args:
        problem: DCP or DGP, and DPP in its parameters.
        parameters: Parameters in call order; None for all, in order of appearance. Parameters left out are constants
            and need a `.value`.
        outputs: Variables, dual variables, affine expressions or `problem.objective`; None for all variables.
        gp: True for a geometric program, False for a convex one, None to detect.

    Raises:
        NotAProblemError: `problem` is no `cvxpy.Problem`.
        NotDCPError: Not convex by the rules; the error names the subexpression.
        NotDPPError: Parameters do not enter affinely; the error names the subexpression and a rewrite.
        IntegerVariableError: Boolean or integer variables.
        ParameterMismatchError: A listed parameter or output is not in the problem, or a constant has no value.
    """
    if not isinstance(problem, cp.Problem):
        raise NotAProblemError(
            "only a cvxpy.Problem can be compiled here",
            expected="a cvxpy.Problem",
            got=type(problem).__name__,
            mend="write the problem as cvxpy.Problem(objective, constraints)",
        )
    listed = listed_parameters(problem, parameters)
    wanted = list(problem.variables()) if outputs is None else list(outputs)
    fixed, constants = fix(problem, listed)
    gp = discipline.check(fixed, gp)
    extended, leaves = _extend(problem, fixed, constants, wanted)
    canonical = canonicalize(extended, gp)
    return _program(canonical, extended, listed, wanted, leaves)


def listed_parameters(problem: cp.Problem, parameters: Sequence[cp.Parameter] | None) -> list[cp.Parameter]:
    """The parameters in call order: those that are listed, or all."""
    present = problem.parameters()
    if parameters is None:
        return present
    ids = {p.id for p in present}
    listed = list(parameters)
    for p in listed:
        if not isinstance(p, cp.Parameter):
            raise ParameterMismatchError(
                "`parameters` holds something else than a parameter",
                where=str(p),
                expected="cvxpy.Parameter",
                got=type(p).__name__,
                mend="list the cvxpy.Parameter objects themselves; variables go to `variables`",
            )
        if p.id not in ids:
            raise ParameterMismatchError(
                f"parameter '{p.name()}' is listed but does not occur in the problem",
                where=f"parameters={[q.name() for q in listed]}",
                expected=f"some of {sorted(q.name() for q in present)}",
                mend=f"remove '{p.name()}' from `parameters`, or use it in the problem",
            )
    if len({p.id for p in listed}) != len(listed):
        raise ParameterMismatchError("a parameter is listed twice", where=str([p.name() for p in listed]), mend="list each parameter once")
    chosen = {p.id for p in listed}
    for p in present:
        if p.id not in chosen and p.value is None:
            raise ParameterMismatchError(
                f"parameter '{p.name()}' is not listed and has no value to be a constant",
                where=f"parameters={[q.name() for q in listed]}",
                mend=f"list it in `parameters`, or set its `.value` before exporting ('{p.name()}'.value = ...)",
            )
    return listed


def fix(problem: cp.Problem, listed: Sequence[cp.Parameter]) -> tuple[cp.Problem, dict[int, Any]]:
    """Put the values of parameters that are not listed in their place, so that they may enter in any way.

    Returns:
        The problem, with its constraints in the same order, and the constants by `id` of the parameter.
    """
    chosen = {p.id for p in listed}
    constants = {id(p): _constant(p) for p in problem.parameters() if p.id not in chosen}
    if not constants:
        return problem, constants
    objective = problem.objective.tree_copy(id_objects=dict(constants))
    return cp.Problem(objective, [c.tree_copy(id_objects=dict(constants)) for c in problem.constraints]), constants


def _constant(parameter: cp.Parameter) -> Any:
    constant = cp.Constant(parameter.value)
    return cp.psd_wrap(constant) if parameter.attributes.get("PSD") else constant


def _extend(problem: cp.Problem, fixed: cp.Problem, constants: dict[int, Any], wanted: Sequence[Any]) -> tuple[cp.Problem, dict[int, Any]]:
    """Give every expression output a variable of its own, equal to it; returns the problem to compile and {position: leaf}."""
    pairs = zip(problem.constraints, fixed.constraints, strict=True)
    duals = {v.id: (ours, i) for theirs, ours in pairs for i, v in enumerate(theirs.dual_variables)}
    variables = {v.id for v in problem.variables()}
    leaves: dict[int, Any] = {}
    extra: list[Any] = []
    for position, item in enumerate(wanted):
        if isinstance(item, (cp.Minimize, cp.Maximize)):
            if item is not problem.objective:
                raise ParameterMismatchError(
                    "an output is an objective of another problem", where=str(item), mend="pass `problem.objective`"
                )
            leaves[position] = "value"
        elif isinstance(item, cp.Variable) and item.id in duals:
            leaves[position] = duals[item.id]
        elif isinstance(item, cp.Variable):
            if item.id not in variables:
                raise ParameterMismatchError(
                    f"variable '{item.name()}' is listed as an output but does not occur in the problem",
                    where=f"output {position}",
                    expected=f"some of {sorted(v.name() for v in problem.variables())}",
                    mend=f"remove '{item.name()}' from `variables`, or use it in the problem",
                )
            leaves[position] = item
        elif isinstance(item, cp.Expression):
            leaves[position], constraint = _defined(item.tree_copy(id_objects=dict(constants)) if constants else item, problem)
            extra.append(constraint)
        else:
            raise ParameterMismatchError(
                "an output is neither a variable, a dual variable, an expression nor the problem's objective",
                where=f"output {position}",
                got=type(item).__name__,
                mend="list the cvxpy objects themselves, as in variables=[x, constraint.dual_variables[0], problem.objective]",
            )
    return (cp.Problem(fixed.objective, [*fixed.constraints, *extra]) if extra else fixed), leaves


def _defined(expression: cp.Expression, problem: cp.Problem) -> tuple[cp.Variable, Any]:
    """A variable equal to an expression, which must be affine (log-log affine in a geometric program)."""
    geometric = not expression.is_affine() and expression.is_log_log_affine()
    missing = {v.id for v in expression.variables()} - {v.id for v in problem.variables()}
    if missing or not (geometric or expression.is_affine()):
        raise BuildError(
            "an output expression is not an affine function of the problem's variables",
            where=str(expression),
            got=f"curvature {expression.curvature}" + (", with variables that the problem lacks" if missing else ""),
            mend="return the variables and evaluate the expression in your framework; the problem's objective can be an output itself",
        )
    variable = cp.Variable(expression.shape, name=str(expression), pos=geometric)
    return variable, variable == expression


def _program(
    canonical: Canonical, problem: cp.Problem, listed: Sequence[cp.Parameter], wanted: Sequence[Any], leaves: dict[int, Any]
) -> ConeProgram:
    channels, ranges, lowering = _channels(canonical, problem, listed)

    def affine(tensor: sp.csr_array) -> AffineMap:
        csc: Any = sp.csc_array(tensor)
        parts = [sp.csc_array(csc[:, columns]) @ lower for columns, lower in lowering]
        return AffineMap.from_sparse(sp.csc_array(sp.hstack([*parts, csc[:, [csc.shape[1] - 1]]])), ranges)

    structure = Structure(canonical.n, canonical.P_rows, canonical.P_cols, canonical.A_rows, canonical.A_cols, canonical.cones)
    sign = -1.0 if isinstance(problem.objective, cp.Maximize) else 1.0
    value = OutputSpec("value", (), "value", exponential=canonical.is_dgp, sign=sign)
    return ConeProgram(
        structure=structure,
        P=affine(canonical.P),
        q=affine(canonical.q),
        d=affine(canonical.d),
        A=affine(canonical.A),
        b=affine(canonical.b),
        parameters=tuple(parameter_spec(p) for p in listed),
        channels=tuple(channels),
        outputs=tuple(_output(canonical, item, leaves[i], value) for i, item in enumerate(wanted)),
        value=value,
        kind="DGP" if canonical.is_dgp else "DCP",
    )


def parameter_spec(parameter: cp.Parameter) -> ParameterSpec:
    """What the program keeps of a parameter."""
    return ParameterSpec(parameter.name(), tuple(parameter.shape), tuple(a for a in _DECLARED if parameter.attributes.get(a)))


def _channels(canonical: Canonical, problem: cp.Problem, listed: Sequence[cp.Parameter]) -> tuple[Any, Any, Any]:
    """Channels of the listed parameters, their columns after lowering, and the lowering matrices."""
    channels: list[Channel] = []
    ranges: list[tuple[int, slice]] = []
    lowering: list[tuple[slice, sp.csc_array]] = []
    width = 0
    present = {p.id for p in problem.parameters()}
    for position, p in enumerate(listed):
        if p.id not in present:
            continue
        for columns, index, log in canonical.parameter_columns(p):
            flat = index.ravel()
            entries = np.flatnonzero(flat >= 0)
            size = columns.stop - columns.start
            shared = np.bincount(flat[entries], minlength=size)
            # An entry stored once but written twice (symmetric) reads the mean of both, so that its gradient is symmetric.
            lower = sp.csc_array((1.0 / shared[flat[entries]], (flat[entries], entries)), shape=(size, p.size))
            ranges.append((len(channels), slice(width, width + p.size)))
            channels.append(Channel(position, p.size, log))
            lowering.append((columns, lower))
            width += p.size
    return channels, ranges, lowering


def _output(canonical: Canonical, item: Any, leaf: Any, value: OutputSpec) -> OutputSpec:
    if isinstance(leaf, str):
        return value
    if isinstance(leaf, tuple):
        constraint, position = leaf
        matrix = canonical.dual_map(constraint, position).tocoo()
        return OutputSpec(item.name(), tuple(item.shape), "dual", matrix.row.astype(np.intp), matrix.col.astype(np.intp), matrix.data)
    index = canonical.variable_index(leaf)
    name = item.name() if isinstance(item, cp.Variable) else str(item)
    if index is None:
        if leaf.size == 0:
            return OutputSpec(name, tuple(leaf.shape), "primal")
        raise ParameterMismatchError(
            f"variable '{name}' vanished when the problem was compiled", mend="use it in the objective or in a constraint"
        )
    rows = np.flatnonzero(index.ravel() >= 0)
    cols = index.ravel()[rows]
    return OutputSpec(name, tuple(leaf.shape), "primal", rows, cols, np.ones(len(rows)), exponential=canonical.is_dgp)
