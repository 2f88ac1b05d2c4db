"""Nonlinear least squares: Gauss-Newton, Levenberg-Marquardt and dogleg for batches of one program."""

from layercompiler.solvers.least_squares.options import LeastSquaresOptions
from layercompiler.solvers.least_squares.solver import Result, Solver

__all__ = ["LeastSquaresOptions", "Result", "Solver"]
