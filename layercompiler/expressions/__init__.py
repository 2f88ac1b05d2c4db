"""Smooth expressions as data: a graph of operations that every framework evaluates, with its Jacobian's pattern and colors."""

from layercompiler.expressions import elementwise, linear, movement, products, reductions, spectral  # noqa: F401  each registers its operations
from layercompiler.expressions.graph import Builder, Graph
from layercompiler.expressions.node import Node

__all__ = ["Builder", "Graph", "Node"]
