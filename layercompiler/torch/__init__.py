"""The torch binding: `Layer`, and `CvxpyLayer` with the signature of the cvxpylayers class."""

from layercompiler.frameworks import checked

checked("torch")  # says what to install

from layercompiler.torch.cvxpylayers import CvxpyLayer  # noqa: E402
from layercompiler.torch.layer import Layer, Solution  # noqa: E402

__all__ = ["CvxpyLayer", "Layer", "Solution"]
