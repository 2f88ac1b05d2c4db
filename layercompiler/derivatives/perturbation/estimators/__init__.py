"""Estimators: one file each behind a registry."""

from layercompiler.derivatives.perturbation.estimators.adaptive import AdaptiveIMLE, StepSize
from layercompiler.derivatives.perturbation.estimators.base import Draw, Estimator, Oracle, estimators
from layercompiler.derivatives.perturbation.estimators.blackbox import DBB
from layercompiler.derivatives.perturbation.estimators.identity import Identity
from layercompiler.derivatives.perturbation.estimators.imle import IMLE
from layercompiler.derivatives.perturbation.estimators.perturbed import Perturbed
from layercompiler.derivatives.perturbation.estimators.score import ScoreFunction
from layercompiler.derivatives.perturbation.estimators.straight_through import StraightThrough

__all__ = [
    "DBB",
    "IMLE",
    "AdaptiveIMLE",
    "Draw",
    "Estimator",
    "Identity",
    "Oracle",
    "Perturbed",
    "ScoreFunction",
    "StepSize",
    "StraightThrough",
    "estimators",
]
