"""Kinds of variables: vectors, and the Lie groups of rotations and rigid motions."""

from layercompiler.manifolds.base import Manifold
from layercompiler.manifolds.element import Element
from layercompiler.manifolds.euclidean import Vectors
from layercompiler.manifolds.group import Group
from layercompiler.manifolds.planar import Motion2, Rotation2
from layercompiler.manifolds.spatial import Motion3, Rotation3

SO2, SE2, SO3, SE3 = Rotation2(), Motion2(), Rotation3(), Motion3()

__all__ = ["SE2", "SE3", "SO2", "SO3", "Element", "Group", "Manifold", "Vectors"]
