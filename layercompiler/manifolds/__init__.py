"""Kinds of variables: vectors, and the Lie groups of rotations and rigid motions."""

from layercompiler.manifolds.base import Manifold
from layercompiler.manifolds.euclidean import Vectors

__all__ = ["Manifold", "Vectors"]
