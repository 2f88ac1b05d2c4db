"""Compiled kernels: whole solvers in C++ with one problem instance per SIMD lane; optional, see `available`."""

from layercompiler.kernels.conic import Conic, ConicSolution
from layercompiler.kernels.dense_qp import DenseFactors, DenseQP, DenseSolution, operations
from layercompiler.kernels.grid import grid_paths
from layercompiler.kernels.layout import cone_list
from layercompiler.kernels.ldl import LDL, Factor
from layercompiler.kernels.library import available, instruction_set, peak_rate
from layercompiler.kernels.newton import Linearization, Newton, Refined
from layercompiler.kernels.simplex import Simplex

__all__ = [
    "LDL",
    "Conic",
    "ConicSolution",
    "DenseFactors",
    "DenseQP",
    "DenseSolution",
    "Factor",
    "Linearization",
    "Newton",
    "Refined",
    "Simplex",
    "available",
    "cone_list",
    "grid_paths",
    "instruction_set",
    "operations",
    "peak_rate",
]
