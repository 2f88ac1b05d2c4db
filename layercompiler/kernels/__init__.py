"""Compiled kernels: whole solvers in C++ with one problem instance per SIMD lane; optional, see `available`."""

from layercompiler.kernels.conic import Conic, ConicSolution
from layercompiler.kernels.ldl import LDL, Factor
from layercompiler.kernels.library import available, instruction_set

__all__ = ["LDL", "Conic", "ConicSolution", "Factor", "available", "instruction_set"]
