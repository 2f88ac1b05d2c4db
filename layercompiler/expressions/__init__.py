"""Smooth expressions as data: a graph of operations that every framework evaluates, with its Jacobian's pattern and colors."""

from layercompiler.expressions.graph import Builder, Graph, Node

__all__ = ["Builder", "Graph", "Node"]
