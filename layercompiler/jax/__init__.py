"""jax: compiled problems as functions that jit, vmap and differentiate."""

from layercompiler.jax.cvxpylayers import CvxpyLayer
from layercompiler.jax.layer import Layer

__all__ = ["CvxpyLayer", "Layer"]
