"""The run time of a compiled problem, on numpy arrays: the only thing the frameworks wrap."""

from layercompiler.plan.compiled import CompiledProblem
from layercompiler.plan.dense import compile_program
from layercompiler.plan.evaluation import Evaluation

__all__ = ["CompiledProblem", "Evaluation", "compile_program"]
