"""The pieces that all advice is made of: declarations, fresh names, new parameters and variables that stand in for expressions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy as cp

from layercompiler.problems.curvature import AFFINE, CONVEX, Rules, arguments
from layercompiler.problems.notation import peel, text

DCP, DPP = Rules(), Rules(dpp=True)
_LOOSE = {"AddExpression", "NegExpression", "multiply", "MulExpression", "DivExpression"}


def declaration(e: Any, name: str, *attributes: str) -> str:
    """The declaration of a parameter that can stand for an expression: its shape, and the sign that is known of it."""
    known = list(attributes)
    if not known and e.ndim == 2 and e.shape[0] == e.shape[1] > 1 and e.is_psd():
        known = ["PSD"]
    if not known and e.ndim == 2 and e.shape[0] == e.shape[1] > 1 and e.is_symmetric():
        known = ["symmetric"]
    if not known and (e.is_nonneg() or e.is_nonpos()):
        known = ["nonneg" if e.is_nonneg() else "nonpos"]
    return f"{name} = cp.Parameter({_arguments(e.shape, known)})"


def _arguments(shape: tuple[int, ...], attributes: list[str]) -> str:
    return ", ".join([str(shape)] * bool(shape) + [f"{a}=True" for a in attributes])


def _ids(e: Any) -> set[int]:
    return {p.id for p in e.parameters()}


def listing(leaves: list[Any]) -> str:
    """Names of leaves."""
    return ", ".join(sorted({leaf.name() for leaf in leaves}))


def tight(e: Any) -> str:
    """An expression in brackets where it is a sum, a product or a quotient."""
    return f"({text(e)})" if type(peel(e)).__name__ in _LOOSE else text(e)


@dataclass(frozen=True)
class Words:
    """What a piece of advice needs to know of its place.

    Attributes:
        taken: Names that the problem uses.
        in_objective: True in the objective, where a quadratic form may keep a parametric matrix.
    """

    taken: frozenset[str]
    in_objective: bool

    def fresh(self, shape: tuple[int, ...], wishes: str) -> str:
        """A letter that the problem does not use, in upper case for a matrix."""
        letters = [w.upper() if len(shape) > 1 else w for w in wishes]
        return next(name for name in (*letters, *(f"{letters[0]}{i}" for i in range(len(self.taken) + 1))) if name not in self.taken)

    def stand_for(self, e: Any, *attributes: str) -> tuple[str, str]:
        """A parameter that stands for an expression of parameters only: its name, and how to declare and pass it."""
        bare = peel(e)
        name = self.fresh(bare.shape, "rw")
        flow = f"the gradient flows on to {listing(bare.parameters())} there"
        return name, f"declare {declaration(bare, name, *attributes)}, pass `{text(bare)}`, computed in your framework, as {name} ({flow})"

    def substitute(self, e: Any, *attributes: str) -> str:
        """Advise one new parameter in place of an expression of parameters only."""
        name, line = self.stand_for(e, *attributes)
        return f"{line} and write {name} in place of `{text(peel(e))}`"

    def stand_in(self, e: Any) -> tuple[str, str]:
        """A variable that stands for an expression with variables and parameters: its name, and how to declare and tie it.

        An affine expression is tied by an equality. A convex one is bounded from above and a concave one from below, which
        is the same thing: where the rules admit a convex argument the whole grows with it, so the bound gets tight.
        """
        name = self.fresh(e.shape, "yt")
        declare = f"declare {name} = cp.Variable({_arguments(e.shape, [])}) and add the constraint"
        if DCP.meets(e, AFFINE):
            return name, f"{declare} {name} == {text(e)}"
        return name, f"{declare} {text(e)} {'<=' if DCP.meets(e, CONVEX) else '>='} {name}"

    def freed(self, e: Any) -> tuple[str, str]:
        """The text of an expression freed of its parameters, and the declaration of the variable that takes them over.

        `norm(A @ x)` becomes `norm(y)` with y == A @ x, which keeps the form of the problem; where that is not to be had, the
        whole expression becomes a variable.
        """
        mixed = [i for i, a in enumerate(arguments(e)) if a.parameters()]
        inner = e.args[mixed[0]] if len(mixed) == 1 else e
        if DPP.meets(e, AFFINE) or not (inner.variables() and DPP.meets(inner, AFFINE)) or _ids(e) != _ids(inner):
            return self.stand_in(e)
        name, tie = self.stand_in(inner)
        args = list(e.args)
        args[mixed[0]] = cp.Variable(inner.shape, name=name)
        return text(e.copy(args)), tie

    def square_root(self, matrix: Any, inner: str, sign: str = "") -> str:
        """Advise sum_squares(L @ x) for a quadratic form in x: L is a factor of the matrix (of its negative for sign "-")."""
        name = self.fresh(matrix.shape, "lf")
        return (
            f"declare {name} = cp.Parameter({matrix.shape}), write {sign}sum_squares({name} @ {inner}) and pass a factor with "
            f"{name}.T @ {name} = {sign}{tight(matrix)}, computed in your framework (the transpose of its Cholesky factor)"
        )
