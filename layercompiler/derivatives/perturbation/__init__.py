"""Perturb-and-MAP: estimators of the gradient of discrete solutions, their noise, and losses on them."""
