"""Named oracles: exact batched solvers of well-known problems, one file each."""

from layercompiler.solvers.oracles.assignment import Assignment
from layercompiler.solvers.oracles.base import NamedOracle, oracles
from layercompiler.solvers.oracles.dag_path import DagPath
from layercompiler.solvers.oracles.grid_path import GridPath
from layercompiler.solvers.oracles.knapsack import Knapsack
from layercompiler.solvers.oracles.ranking import Ranking
from layercompiler.solvers.oracles.spanning_tree import SpanningTree
from layercompiler.solvers.oracles.top_k import TopK
from layercompiler.solvers.oracles.tour import Tour

__all__ = ["Assignment", "DagPath", "GridPath", "Knapsack", "NamedOracle", "Ranking", "SpanningTree", "TopK", "Tour", "oracles"]
