"""Reports, checks and plots: what a person asks about a compiled problem."""

from layercompiler.inspect.checks import Check, check
from layercompiler.inspect.gradients import Comparison, Gradients, gradients
from layercompiler.inspect.kkt import Residuals, residuals
from layercompiler.inspect.progress import Best, Progress

__all__ = ["Best", "Check", "Comparison", "Gradients", "Progress", "Residuals", "check", "gradients", "residuals"]
