"""Differentiation of black-box solvers by linear interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from layercompiler.derivatives.perturbation.estimators.base import estimators
from layercompiler.derivatives.perturbation.estimators.imle import IMLE
from layercompiler.derivatives.perturbation.noise import Noise


@estimators.register
@dataclass(frozen=True)
class DBB(IMLE):
    """Differentiation of black-box solvers: the slope of a piecewise affine interpolation of f(z(u)), (z(u) - z(u - lambda dy)) / lambda.

    It is I-MLE with one sample and without noise; the arguments are those of `IMLE`.

    Source:
        Vlastelica, Paulus, Musil, Martius, Rolinek 2020.
    """

    noise: Noise | None = None
    step: float = 10.0
    difference: str = "forward"

    name: ClassVar[str] = "dbb"
