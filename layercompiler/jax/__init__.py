"""jax: compiled problems as functions that jit, vmap and differentiate."""

from layercompiler.frameworks import checked

checked("jax")  # says what to install

from layercompiler.jax.cvxpylayers import CvxpyLayer  # noqa: E402
from layercompiler.jax.layer import Layer  # noqa: E402

__all__ = ["CvxpyLayer", "Layer"]
