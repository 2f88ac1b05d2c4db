"""Implicit problems without a framework: numpy in, numpy out, for problems whose solver needs no derivatives."""

from __future__ import annotations

from typing import Any

from layercompiler.implicit.layer import Layer


class ImplicitLayer(Layer):
    """An implicit problem as a function of numpy arrays."""

    def __init__(self, problem: Any) -> None:
        super().__init__(problem, "numpy")
