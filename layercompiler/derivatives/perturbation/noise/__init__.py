"""Noise distributions: one file each behind a registry."""

from layercompiler.derivatives.perturbation.noise.base import Noise, generator, noises
from layercompiler.derivatives.perturbation.noise.gumbel import Gumbel
from layercompiler.derivatives.perturbation.noise.normal import Normal
from layercompiler.derivatives.perturbation.noise.sum_of_gamma import SumOfGamma

__all__ = ["Gumbel", "Noise", "Normal", "SumOfGamma", "generator", "noises"]
