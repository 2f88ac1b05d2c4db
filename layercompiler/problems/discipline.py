"""The rules a problem must follow to become a layer, and an account of where it breaks them.

A problem is compiled once and solved for many parameter values, so convexity has to be provable whatever the values
are, and the canonical data has to be affine in the parameters: disciplined convex programming (DCP) and disciplined
parametrized programming (DPP), or their geometric twins (DGP).

`explain` walks each expression with a demand: Minimize demands a convex expression, the smaller side of `<=` convex and
the larger concave, an equality affine. Every atom passes a demand on to its arguments by its monotonicity; the walk
ends at the smallest subexpression that fails although all its arguments are sound. Each demand is made twice, once with
the parameters as constants (a failure is a DCP or DGP violation) and once with the parameters as variables (a failure
of an expression that passed the first time is a DPP violation).

Source: Grant, Boyd, Ye 2006 (DCP); Agrawal et al. 2019, "Differentiable convex optimization layers", section 4.1 (DPP);
Agrawal, Diamond, Boyd 2019 (DGP).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp

from layercompiler.errors import IntegerVariableError, NotAProblemError, NotDCPError, NotDPPError, UnsupportedConeError
from layercompiler.problems.advice import Words, advise
from layercompiler.problems.curvature import AFFINE, CONCAVE, CONVEX, Failure, Need, Rules, failures, parametric_quadratic
from layercompiler.problems.notation import text

_SHOWN = 5


@dataclass(frozen=True)
class Violation:
    """One subexpression that breaks the rules, and how to write it instead.

    Attributes:
        kind: "DCP", "DGP" or "DPP".
        place: The objective, constraint or variable bound it stands in, as the user would say it.
        path: Python that reaches the subexpression from `problem`.
        expression: The subexpression.
        curvature: What it is, with the parameters fixed.
        needed: What the rules demand there.
        parameters: Names of the parameters in it.
        advice: A way to write it.
    """

    kind: str
    place: str
    path: str
    expression: str
    curvature: str
    needed: str
    parameters: tuple[str, ...]
    advice: str

    def __str__(self) -> str:
        """Where, what, and how to mend it."""
        return "\n".join((f"{self.place}: {self.statement}", f"    at {self.path}", f"    mend: {self.advice}"))

    @property
    def statement(self) -> str:
        """One sentence: what the subexpression is and what it should be."""
        names = f" in the parameters {', '.join(self.parameters)}" if self.parameters else ""
        if self.kind == "DPP":
            return f"`{self.expression}` is not DPP{names} (with the parameters fixed it is {self.curvature}, which would do)"
        return f"`{self.expression}` is not {self.kind}: {self.curvature} where {self.needed} is needed"


def check(problem: Any, gp: bool | None = None, whole: bool = False) -> bool:
    """Raise unless a problem can be compiled; say whether it is geometric.

    Args:
        problem: A `cvxpy.Problem`.
        gp: True forces the rules of geometric programming, False those of convex programming; None takes geometric
            programming where the problem is not DCP but DGP.
        whole: True allows boolean and integer variables.

    Returns:
        True if the problem is to be compiled as a geometric program.

    Raises:
        NotAProblemError: `problem` is not a `cvxpy.Problem`.
        IntegerVariableError: It has boolean or integer variables.
        UnsupportedConeError: It has complex variables, parameters or constants.
        NotDCPError: It breaks the rules even with its parameters fixed.
        NotDPPError: Its parameters enter in a way that the compiled layer cannot follow.
    """
    _check_kind(problem)
    if not whole:
        _check_integer(problem)
    _check_complex(problem)
    geometric = _is_geometric(problem) if gp is None else bool(gp)
    found = explain(problem, geometric)
    if found:
        raise _error(problem, found, geometric, forced=gp is not None)
    return geometric


def explain(problem: Any, gp: bool | None = None) -> list[Violation]:
    """List what keeps a problem from being compiled; empty where nothing does.

    Args:
        problem: A `cvxpy.Problem`.
        gp: As in `check`.

    Returns:
        Violations in the order of the problem, DCP or DGP before DPP.

    Raises:
        NotAProblemError: `problem` is not a `cvxpy.Problem`.

    Example:
        >>> x, p, q = cp.Variable(name="x"), cp.Parameter(name="p"), cp.Parameter(name="q")
        >>> (violation,) = explain(cp.Problem(cp.Minimize(x), [x >= p * q]))
        >>> violation.kind, violation.expression, violation.parameters
        ('DPP', 'p * q', ('p', 'q'))
    """
    _check_kind(problem)
    geometric = _is_geometric(problem) if gp is None else bool(gp)
    undisciplined = list(_violations(problem, Rules(gp=geometric)))
    unparametrized = list(_violations(problem, Rules(gp=geometric, dpp=True)))
    return undisciplined + [v for v in unparametrized if not any(v.path.startswith(u.path) for u in undisciplined)]


def _violations(problem: cp.Problem, rules: Rules) -> Iterator[Violation]:
    fixed = Rules(gp=rules.gp)
    seen: set[tuple[str, int]] = set()
    taken = frozenset(leaf.name() for leaf in (*problem.variables(), *problem.parameters()))
    for owner, path, expression, need in _demands(problem):
        in_objective = owner is problem.objective
        local = replace(rules, quadratic=rules.dpp and in_objective and parametric_quadratic(expression))
        for failure in failures(expression, need, local, path):
            is_dpp = rules.dpp and fixed.meets(failure.expression, failure.need)
            kind = "DPP" if is_dpp else ("DGP" if rules.gp else "DCP")
            if (kind, id(failure.expression)) not in seen:
                seen.add((kind, id(failure.expression)))
                yield _violation(kind, _place(problem, owner), failure, rules.gp, Words(taken, in_objective))


def _violation(kind: str, place: str, failure: Failure, gp: bool, words: Words) -> Violation:
    e = failure.expression
    return Violation(
        kind=kind,
        place=place,
        path=failure.path,
        expression=text(e),
        curvature=Rules(gp=gp).curvature(e),
        needed=failure.need.name(gp),
        parameters=tuple(sorted({p.name() for p in e.parameters()})),
        advice=advise(kind, failure, gp, words),
    )


def _demands(problem: cp.Problem) -> Iterator[tuple[Any, str, Any, Need | None]]:
    """Yield (objective, constraint or variable; path; expression; need) for everything a problem demands."""
    need = CONVEX if isinstance(problem.objective, cp.Minimize) else CONCAVE
    yield problem.objective, "problem.objective.args[0]", problem.objective.args[0], need
    for i, constraint in enumerate(problem.constraints):
        for j, (expression, need) in enumerate(zip(constraint.args, _sides(constraint), strict=True)):
            yield constraint, f"problem.constraints[{i}].args[{j}]", expression, need
        if isinstance(getattr(constraint, "alpha", None), cp.Expression) and constraint.alpha.parameters():
            yield constraint, f"problem.constraints[{i}].alpha", constraint.alpha, None
    for i, variable in enumerate(problem.variables()):
        for j, bound in enumerate(variable.attributes.get("bounds") or ()):
            if isinstance(bound, cp.Expression):
                yield variable, f"problem.variables()[{i}].attributes['bounds'][{j}]", bound, AFFINE


def _place(problem: cp.Problem, owner: Any) -> str:
    if owner is problem.objective:
        return "objective"
    if isinstance(owner, cp.Variable):
        return f"bounds of variable {owner.name()!r}"
    index = next(i for i, c in enumerate(problem.constraints) if c is owner)
    return f"constraints[{index}] ({text(owner)})"


def _sides(constraint: Any) -> list[Need]:
    kind = type(constraint).__name__
    if kind == "Inequality":
        return [CONVEX, CONCAVE]
    if kind in {"NonPos", "NonNeg"}:
        return [CONVEX if kind == "NonPos" else CONCAVE]
    return [AFFINE] * len(constraint.args)


def _is_geometric(problem: cp.Problem) -> bool:
    """Tell which rules apply: DCP where it holds, else DGP where it holds, else those that are broken in fewer places."""
    if problem.is_dcp() or not problem.variables():
        return False
    if problem.is_dgp():
        return True
    if not all(v.is_pos() for v in problem.variables()):
        return False
    return len(list(_violations(problem, Rules(gp=True)))) <= len(list(_violations(problem, Rules())))


def _check_kind(problem: Any) -> None:
    if isinstance(problem, cp.Problem):
        return
    mend = "build one with cvxpy.Problem(cvxpy.Minimize(expression), constraints)"
    raise NotAProblemError("Only a cvxpy.Problem can be compiled", expected="a cvxpy.Problem", got=f"{type(problem).__name__}", mend=mend)


def _check_integer(problem: cp.Problem) -> None:
    names = [v.name() for v in problem.variables() if v.attributes["boolean"] or v.attributes["integer"]]
    names += [text(c) for c in problem.constraints if type(c).__name__ == "FiniteSet"]
    if names:
        raise IntegerVariableError(
            "The problem has boolean or integer variables: its solution is piecewise constant and has no useful derivative",
            where=", ".join(names),
            mend="export with estimator=layercompiler.IMLE() (I-MLE), or relax the variables: declare them without boolean=True "
            "or integer=True (a boolean one with bounds=[0, 1])",
        )


def _check_complex(problem: cp.Problem) -> None:
    names = [
        f"{type(e).__name__.lower()} {text(e)}"
        for e in (*problem.variables(), *problem.parameters(), *problem.constants())
        if e.is_complex()
    ]
    if names:
        raise UnsupportedConeError(
            "Only real problems can be compiled; this one has complex leaves",
            where=", ".join(dict.fromkeys(names)),
            mend="write real and imaginary part as two real variables; a Hermitian Z = X + iY is positive semidefinite where "
            "the symmetric matrix bmat([[X, -Y], [Y, X]]) is",
        )


def _error(problem: cp.Problem, found: list[Violation], gp: bool, *, forced: bool) -> NotDCPError | NotDPPError:
    first = found[0]
    rules = "DGP" if gp else "DCP"
    others = "".join(f"\n  also {v}" for v in found[1:_SHOWN])
    others += f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    where, mend = f"{first.place}, at {first.path}", first.advice + _other_way(problem, gp, forced) + others
    if first.kind == "DPP":
        what = f"The problem is {rules} but not DPP because of `{first.expression}`"
        expected = f"parameters ({', '.join(first.parameters)}) that enter affinely"
        error: NotDCPError | NotDPPError = NotDPPError(what, where=where, expected=expected, mend=mend)
    else:
        what = f"The problem is not {rules} because of `{first.expression}`"
        error = NotDCPError(what, where=where, expected=first.needed, got=first.curvature, mend=mend)
    error.violations = tuple(found)  # type: ignore[union-attr]
    return error


def _other_way(problem: Any, gp: bool, forced: bool) -> str:
    if gp and forced and problem.is_dcp():
        return "; or leave out gp=True: the problem is DCP"
    if not gp and problem.is_dpp("dgp"):
        return "; or pass gp=True: as a geometric program the problem is DPP as it stands"
    return ""
