"""Implicit problems as torch modules."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from layercompiler.implicit.certificate import Certificate
from layercompiler.implicit.layer import Layer


class ImplicitLayer(torch.nn.Module):
    """An implicit problem as a module.

    Modules among the functions of the problem (an equilibrium network's cell, say) are submodules; learned weights of an unrolled algorithm
    are parameters.
    """

    def __init__(self, problem: Any) -> None:
        super().__init__()
        self.core = Layer(problem, "torch")
        self.problem = problem
        for field in fields(problem):
            value = getattr(problem, field.name)
            if isinstance(value, torch.nn.Module):
                self.add_module(field.name, value)
        if getattr(problem, "learn", None) is not None:
            leaves, build = self.core.xp.tree(problem.learn)
            self.learned = torch.nn.ParameterList(torch.as_tensor(leaf).detach().clone() for leaf in leaves)
            self.core.weights = lambda: build(list(self.learned))

    def forward(self, *theta: Any, init: Any = None, **named: Any) -> Any:
        """See `layercompiler.implicit.layer.Layer.__call__`."""
        return self.core(*theta, init=init, **named)

    def certificate(self, *theta: Any, **options: Any) -> Certificate:
        """See `layercompiler.implicit.layer.Layer.certificate`."""
        return self.core.certificate(*theta, **options)

    def extra_repr(self) -> str:
        """What is solved."""
        return type(self.problem).__name__
