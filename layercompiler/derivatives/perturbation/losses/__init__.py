"""Losses on solutions of discrete problems: one file each behind a registry."""

from layercompiler.derivatives.perturbation.losses.base import Loss, losses
from layercompiler.derivatives.perturbation.losses.fenchel_young import FenchelYoung
from layercompiler.derivatives.perturbation.losses.map_contrastive import MAPContrastive
from layercompiler.derivatives.perturbation.losses.nce import NCE
from layercompiler.derivatives.perturbation.losses.perturbed_fenchel_young import PerturbedFenchelYoung
from layercompiler.derivatives.perturbation.losses.regret import Regret
from layercompiler.derivatives.perturbation.losses.spo_plus import SPOPlus

__all__ = ["NCE", "FenchelYoung", "Loss", "MAPContrastive", "PerturbedFenchelYoung", "Regret", "SPOPlus", "losses"]
