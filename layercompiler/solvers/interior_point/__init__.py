"""The array interior point: batches of dense quadratic and second-order cone programs, in the array functions of any framework.

program     the numbers, and the residual of a point       symmetric   orthants and second-order cones
dual        the fast form, for Q definite                  primal      the robust form, with certificates (scaling: its units)
complementarity  the steps of the dual form
solution    both together, and linear solves               engine      the same as an engine of the registry, on numpy
"""

from layercompiler.solvers.interior_point.engine import InteriorPoint
from layercompiler.solvers.interior_point.program import Point, Program
from layercompiler.solvers.interior_point.solution import Settings, Solved, linear_solve, solve
from layercompiler.solvers.interior_point.symmetric import Symmetric

__all__ = ["InteriorPoint", "Point", "Program", "Settings", "Solved", "Symmetric", "linear_solve", "solve"]
