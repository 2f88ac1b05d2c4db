"""Reports, checks and plots: what a person asks about a compiled problem."""

from layercompiler.inspect.checks import Check, check
from layercompiler.inspect.gradients import Comparison, Gradients, gradients
from layercompiler.inspect.kkt import Residuals, residuals

__all__ = ["Check", "Comparison", "Gradients", "Residuals", "check", "gradients", "residuals"]
