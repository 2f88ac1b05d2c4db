"""The torch binding: `Layer`, and `CvxpyLayer` with the signature of the cvxpylayers class."""

from layercompiler.torch.cvxpylayers import CvxpyLayer
from layercompiler.torch.layer import Layer, Solution

__all__ = ["CvxpyLayer", "Layer", "Solution"]
