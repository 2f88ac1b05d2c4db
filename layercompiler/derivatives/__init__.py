"""Derivatives: the residual map of a cone program, its linear systems, and the rule that makes them gradients."""
