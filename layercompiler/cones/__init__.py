"""Cones: projections with exact derivatives, batched, one file per cone."""

from layercompiler.cones.base import Cone, Expansion, Projection
from layercompiler.cones.nonnegative import Nonnegative
from layercompiler.cones.product import Product, ProductProjection
from layercompiler.cones.psd import PSD
from layercompiler.cones.second_order import SecondOrder
from layercompiler.cones.zero import Zero

__all__ = ["PSD", "Cone", "Expansion", "Nonnegative", "Product", "ProductProjection", "Projection", "SecondOrder", "Zero"]
