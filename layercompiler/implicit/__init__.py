"""Implicit functions: roots, fixed points, minimisers and unrolled algorithms as layers, whoever solves them."""

from layercompiler.implicit.certificate import Certificate, certify
from layercompiler.implicit.decorators import custom_fixed_point, custom_root, root_jvp, root_vjp
from layercompiler.implicit.descent import LBFGS, BlockCoordinate, Gradient, MirrorDescent
from layercompiler.implicit.iterations import Anderson, Bisection, Broyden, Newton, Picard, Result, Solver
from layercompiler.implicit.problem import Argmin, Declarative, FixedPoint, Root, Unrolled

__all__ = [
    "LBFGS",
    "Anderson",
    "Argmin",
    "Bisection",
    "BlockCoordinate",
    "Broyden",
    "Certificate",
    "Declarative",
    "FixedPoint",
    "Gradient",
    "MirrorDescent",
    "Newton",
    "Picard",
    "Result",
    "Root",
    "Solver",
    "Unrolled",
    "certify",
    "custom_fixed_point",
    "custom_root",
    "root_jvp",
    "root_vjp",
]
