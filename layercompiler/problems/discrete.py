"""A CVXPY problem with boolean or integer variables becomes a `DiscreteProgram`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cvxpy as cp

from layercompiler.errors import BuildError, NotAProblemError, UnsupportedConeError
from layercompiler.problems import convex, discipline
from layercompiler.problems.canonical import canonicalize
from layercompiler.programs.discrete import DiscreteProgram


def compile_discrete(
    problem: cp.Problem, parameters: Sequence[cp.Parameter] | None = None, outputs: Sequence[Any] | None = None
) -> DiscreteProgram:
    """Compile a problem with or without whole variables.

    Args:
        problem: DCP, DPP, and linear once canonicalised, but for a quadratic objective.
        parameters: As in `compile_convex`; likewise `outputs`, which are variables and affine expressions.
        outputs: See `parameters`.

    Raises:
        NotAProblemError: `problem` is no `cvxpy.Problem`.
        NotDCPError: Not convex by the rules once the whole variables are relaxed; likewise NotDPPError.
        UnsupportedConeError: A constraint is not linear, or the objective neither linear nor quadratic without parameters there.
        ParameterMismatchError: A listed parameter or output is not in the problem, or a constant has no value.
    """
    if not isinstance(problem, cp.Problem):
        raise NotAProblemError("only a cvxpy.Problem can be compiled here", expected="a cvxpy.Problem", got=type(problem).__name__)
    listed = convex.listed_parameters(problem, parameters)
    wanted = list(problem.variables()) if outputs is None else list(outputs)
    fixed, constants = convex.fix(problem, listed)
    discipline.check(fixed, gp=False, whole=True)
    extended, leaves = convex._extend(problem, wanted=wanted, fixed=fixed, constants=constants)
    for place, leaf in leaves.items():
        if isinstance(leaf, (str, tuple)):
            raise BuildError(
                "a discrete layer returns variables and affine expressions only",
                where=f"output {place}: {wanted[place]}",
                got="the optimal value" if isinstance(leaf, str) else "a dual variable",
                mend="compute the objective from the variables, in your framework",
            )
    canonical = canonicalize(extended, gp=False, whole=True)
    program = convex._program(canonical, extended, listed, wanted, leaves)
    wrong = sorted({cone.name for cone, _ in canonical.cones.blocks} - {"zero", "nonnegative"})
    moving = bool(program.P.blocks)
    if wrong or moving:
        raise UnsupportedConeError(
            "a discrete layer needs a linear or convex quadratic objective and linear constraints",
            expected="a mixed-integer linear program, or a quadratic one without parameters in its quadratic part",
            got="parameters in the quadratic part" if moving else f"cones {', '.join(wrong)}",
            mend="linearise it (for boolean x, x**2 is x), or hand your own solver to layercompiler.BlackBox",
        )
    return DiscreteProgram(program, canonical.integer, canonical.boolean)
