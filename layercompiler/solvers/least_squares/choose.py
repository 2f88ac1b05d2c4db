"""Which linear solve the steps of a problem take."""

from __future__ import annotations

from layercompiler import kernels
from layercompiler.solvers.least_squares.conjugate import Conjugate
from layercompiler.solvers.least_squares.elimination import Schur, separable
from layercompiler.solvers.least_squares.linear import DENSE, Lanes, Normal, Plain
from layercompiler.solvers.least_squares.structure import Structure


def normal(structure: Structure, name: str = "auto", eliminate: tuple[str, ...] | None = None) -> Normal:
    """The linear solve by name, or the best one that is built here.

    "auto" is "lanes" where the kernels were built: their ordering eliminates block-diagonal unknowns first by itself. Without them,
    Schur complements where the structure has such unknowns and more of them than others.
    """
    if name == "auto":
        gone = [] if kernels.available() else separable(structure)
        few = 2 * sum(v.dof for v in structure.program.variables if v.name in gone) > structure.n > DENSE
        name = "lanes" if kernels.available() else "schur" if few else "plain"
    if name == "schur":
        return Schur(structure, eliminate)
    return Plain(structure, name == "dense") if name in ("plain", "dense") else {"lanes": Lanes, "cg": Conjugate}[name](structure)
