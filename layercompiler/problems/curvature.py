"""The walk that finds the smallest subexpression at which a demand on curvature fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from cvxpy.atoms.affine.affine_atom import AffAtom
from cvxpy.atoms.atom import Atom
from cvxpy.utilities import scopes


@dataclass(frozen=True)
class Need:
    """A demand on an expression: convex, concave, both (affine), or either of the two."""

    convex: bool
    concave: bool

    def name(self, gp: bool) -> str:
        """The demand in words."""
        log = "log-log " * gp
        if self == ANY:
            return f"{log}convex or {log}concave"
        return f"{log}affine" if self == AFFINE else f"{log}{'convex' if self.convex else 'concave'}"


CONVEX, CONCAVE, AFFINE, ANY = Need(True, False), Need(False, True), Need(True, True), Need(False, False)


@dataclass(frozen=True)
class Failure:
    """A subexpression whose arguments are sound but which does not meet the demand made on it.

    Attributes:
        expression: The subexpression.
        need: The demand.
        path: Python that reaches it.
        cause: "nested" for a parametric quadratic form below an atom that is not affine, "number" for a parameter where
            only a number can stand, "constant" for a function of numbers that has to be replaced by its value; else empty.
    """

    expression: Any
    need: Need
    path: str
    cause: str = ""


@dataclass(frozen=True)
class Rules:
    """One set of composition rules.

    Attributes:
        gp: Log-log curvature (DGP) in place of curvature (DCP).
        dpp: Parameters count as variables.
        quadratic: Quadratic forms with a parametric matrix are allowed (the quadratic objective keeps them).
    """

    gp: bool = False
    dpp: bool = False
    quadratic: bool = False

    def _scope(self) -> ExitStack:
        stack = ExitStack()
        if self.dpp:
            stack.enter_context(scopes.dpp_scope())
        if self.quadratic:
            stack.enter_context(scopes.quad_form_dpp_scope())
        return stack

    def meets(self, e: Any, need: Need) -> bool:
        """Whether the composition rules prove the demand."""
        with self._scope():
            convex = e.is_log_log_convex() if self.gp else e.is_convex()
            concave = e.is_log_log_concave() if self.gp else e.is_concave()
        return _suits(need, convex, concave)

    def atom_meets(self, e: Any, need: Need) -> bool:
        """Whether the outermost atom alone, with affine arguments, would meet the demand."""
        with self._scope():
            convex = e.is_atom_log_log_convex() if self.gp else e.is_atom_convex()
            concave = e.is_atom_log_log_concave() if self.gp else e.is_atom_concave()
        return _suits(need, convex, concave)

    def argument_need(self, e: Any, index: int, need: Need) -> Need:
        """The demand that an atom under the demand `need` passes on to one of its arguments."""
        up, down = e.is_incr(index), e.is_decr(index)
        if need == AFFINE or not (up or down):
            return AFFINE
        return need if up else Need(need.concave, need.convex)

    def is_constant(self, e: Any) -> bool:
        """Whether the expression counts as a constant."""
        with self._scope():
            return e.is_constant()

    def curvature(self, e: Any) -> str:
        """What an expression is, in words."""
        convex, concave = self.meets(e, CONVEX), self.meets(e, CONCAVE)
        if self.gp:
            return (
                "log-log affine"
                if convex and concave
                else "log-log convex" * convex or "log-log concave" * concave or "of unknown log-log curvature"
            )
        if e.is_constant():
            return "constant"
        return "affine" if convex and concave else "convex" * convex or "concave" * concave or "of unknown curvature"


def arguments(e: Any) -> list[Any]:
    """The arguments of an atom; a leaf has none, nor has a problem that stands for its optimal value (partial_optimize)."""
    return [] if type(e).__name__ == "PartialProblem" else e.args


def _suits(need: Need, convex: bool, concave: bool) -> bool:
    return convex or concave if need == ANY else (convex or not need.convex) and (concave or not need.concave)


def failures(e: Any, need: Need | None, rules: Rules, path: str) -> Iterator[Failure]:
    """Yield the failures under one demand; `need` None stands for "a number, not a parameter"."""
    if need is None:
        if rules.dpp:
            yield Failure(e, AFFINE, path, cause="number")
        return
    yield from _walk(e, need, rules, path)
    if rules.quadratic and rules.meets(e, need):
        yield from _nested(e, path, affine_above=True)
    if rules.dpp:
        yield from _hidden(e, rules, path)
    elif rules.gp:
        yield from _unfolded(e, path)


def _walk(e: Any, need: Need, rules: Rules, path: str) -> Iterator[Failure]:
    if rules.meets(e, need):
        return
    only_parameters = rules.dpp and not e.variables()
    if not arguments(e) or (only_parameters and not _is_wrapper(e)) or _is_difference(e, rules):
        yield Failure(e, need, path)
        return
    unsound = [i for i, a in enumerate(e.args) if not rules.meets(a, ANY)]
    if unsound:
        known = need != ANY and rules.atom_meets(e, need)
        for i in unsound:
            yield from _walk(e.args[i], rules.argument_need(e, i, need) if known else ANY, rules, f"{path}.args[{i}]")
        return
    need = _settle(e, need, rules)
    if need == ANY or not rules.atom_meets(e, need):
        yield Failure(e, need, path)
        return
    inner = [
        failure
        for i, a in enumerate(e.args)
        if not rules.meets(a, below := rules.argument_need(e, i, need))
        for failure in _walk(a, below, rules, f"{path}.args[{i}]")
    ]
    if not _passes_through(e, need, rules):
        inner = [f for f in inner if rules.dpp and not f.expression.variables()]
    yield from inner or [Failure(e, need, path)]


def _settle(e: Any, need: Need, rules: Rules) -> Need:
    """Turn "either" into the one the atom could deliver; it stays "either" where the atom could deliver both or none."""
    if need != ANY:
        return need
    convex, concave = rules.atom_meets(e, CONVEX), rules.atom_meets(e, CONCAVE)
    return ANY if convex == concave else (CONVEX if convex else CONCAVE)


def _is_wrapper(e: Any) -> bool:
    return type(e).__name__ in {"NegExpression", "Promote", "broadcast_to"}


def _is_difference(e: Any, rules: Rules) -> bool:
    """In geometric programming a difference is the violation, not the negated term in it."""
    return rules.gp and type(e).__name__ == "AddExpression" and any(type(a).__name__ == "NegExpression" for a in e.args)


def _passes_through(e: Any, need: Need, rules: Rules) -> bool:
    """Whether a failure is an argument's own fault: sums, stacks, negations, products with a factor of known sign."""
    if rules.gp or not isinstance(e, AffAtom):
        return False
    return all(rules.argument_need(e, i, CONVEX) != AFFINE for i, a in enumerate(e.args) if a.variables()) or need == AFFINE


def _nested(e: Any, path: str, affine_above: bool) -> Iterator[Failure]:
    """Parametric quadratic forms below an atom that is not affine: cvxpy calls them DPP and freezes P at its value.

    A quadratic objective keeps P only where everything above the form is affine.
    """
    if type(e).__name__ == "QuadForm" and e.args[1].parameters() and not affine_above:
        yield Failure(e, CONVEX, path, cause="nested")
        return
    for i, a in enumerate(arguments(e)):
        yield from _nested(a, f"{path}.args[{i}]", affine_above and isinstance(e, AffAtom))


def _hidden(e: Any, rules: Rules, path: str) -> Iterator[Failure]:
    """Expressions without variables in which cvxpy overlooks a parameter and takes the whole for a constant."""
    if not e.variables():
        if _overlooked(e, rules):
            yield Failure(e, AFFINE, path)
        return
    for i, a in enumerate(arguments(e)):
        yield from _hidden(a, rules, f"{path}.args[{i}]")


def _unfolded(e: Any, path: str) -> Iterator[Failure]:
    """Functions of numbers that cvxpy's log transform gets wrong: they are constants to its rules, whatever they are made of.

    With cvxpy 1.9.3 `x <= max([1, 2])` is unbounded in a geometric program and `x <= Constant(2) - 1.5` allows x = 2.7.
    """
    if e.variables() or e.parameters():
        for i, a in enumerate(arguments(e)):
            yield from _unfolded(a, f"{path}.args[{i}]")
    elif not _transforms(e):
        yield Failure(e, AFFINE, path, cause="constant")


def _transforms(e: Any) -> bool:
    if not e.args:
        return e.is_pos()
    return type(e).__name__ in _EXACT_ON_NUMBERS and all(_transforms(a) for a in e.args)


_EXACT_ON_NUMBERS = {
    *("AddExpression", "Sum", "multiply", "MulExpression", "DivExpression", "Power", "PowerApprox", "Prod", "GeoMean", "GeoMeanApprox"),
    *(
        "Promote",
        "broadcast_to",
        "reshape",
        "index",
        "special_index",
        "transpose",
        "Hstack",
        "Vstack",
        "Concatenate",
        "diag_vec",
        "diag_mat",
    ),
    *("Pnorm", "PnormApprox", "norm1", "quad_over_lin", "QuadForm", "Trace", "exp", "log", "one_minus_pos"),
}


def _overlooked(e: Any, rules: Rules) -> bool:
    """Whether an atom has parameters that are no arguments (huber(2, M), c ** k) while its arguments are numbers.

    Only the power of a number is what the rules of geometric programming take it for: c ** k = exp(k log c).
    """
    if _has_own_parameters(e) and rules.is_constant(e):
        return not rules.gp or any(a.parameters() for a in e.args)
    return any(_overlooked(a, rules) for a in arguments(e))


def _has_own_parameters(e: Any) -> bool:
    """Whether parameters enter an atom beside its arguments."""
    if not arguments(e) or type(e).parameters is Atom.parameters:
        return False
    exponent: Any = getattr(e, "p", None)  # it may hold the same parameter as the base
    if hasattr(exponent, "parameters") and exponent.parameters():
        return True
    return bool({p.id for p in e.parameters()} - {p.id for a in e.args for p in a.parameters()})


def parametric_quadratic(e: Any) -> bool:
    """Whether an expression holds a quadratic form whose matrix depends on parameters."""
    if type(e).__name__ == "QuadForm" and e.args[1].parameters():
        return True
    return any(parametric_quadratic(a) for a in arguments(e))
