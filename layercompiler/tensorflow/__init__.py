"""TensorFlow: compiled problems as Keras layers."""

from layercompiler.tensorflow.cvxpylayers import CvxpyLayer
from layercompiler.tensorflow.layer import Layer

__all__ = ["CvxpyLayer", "Layer"]
