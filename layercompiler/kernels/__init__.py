"""Compiled kernels: whole solvers in C++ with one problem instance per SIMD lane; optional, see `available`."""

from layercompiler.kernels.conic import Conic, ConicSolution
from layercompiler.kernels.dense_qp import DenseFactors, DenseQP, DenseSolution, operations
from layercompiler.kernels.express import Express, Passage
from layercompiler.kernels.grid import grid_paths
from layercompiler.kernels.layout import cone_list
from layercompiler.kernels.ldl import LDL, Factor
from layercompiler.kernels.library import address, available, instruction_set, peak_rate
from layercompiler.kernels.maps import KINDS, Entries, Gather, Pullback, contiguous, flags, longs, pointers, route, running, strides
from layercompiler.kernels.matrices import DenseCalls, Solved
from layercompiler.kernels.newton import Linearization, Newton, Refined
from layercompiler.kernels.scaling import Equilibration
from layercompiler.kernels.simplex import Simplex
from layercompiler.kernels.substitution import Layout, Substitution, Weights

__all__ = [
    "KINDS",
    "LDL",
    "Conic",
    "ConicSolution",
    "DenseCalls",
    "DenseFactors",
    "DenseQP",
    "DenseSolution",
    "Entries",
    "Equilibration",
    "Express",
    "Factor",
    "Gather",
    "Layout",
    "Linearization",
    "Newton",
    "Passage",
    "Pullback",
    "Refined",
    "Simplex",
    "Solved",
    "Substitution",
    "Weights",
    "address",
    "available",
    "cone_list",
    "contiguous",
    "flags",
    "grid_paths",
    "instruction_set",
    "longs",
    "operations",
    "peak_rate",
    "pointers",
    "route",
    "running",
    "strides",
]
