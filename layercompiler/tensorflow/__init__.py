"""TensorFlow: compiled problems as Keras layers."""

from layercompiler.frameworks import checked

checked("tensorflow")  # says what to install

from layercompiler.tensorflow.cvxpylayers import CvxpyLayer  # noqa: E402
from layercompiler.tensorflow.layer import Layer  # noqa: E402

__all__ = ["CvxpyLayer", "Layer"]
