"""Deep equilibrium networks in torch: a weight-tied cell iterated to its fixed point, differentiated at it, in memory independent of depth.

    layer = Equilibrium(cell, forward=Picard(tol=1e-6), batch=1)
    z = layer(x)                       # z = cell(z, x), gradients to x and to every parameter of the cell

The default is the implicit derivative; a phantom gradient is asked for by name.

Source: Bai, Kolter & Koltun 2019 and 2021 (Jacobian regularisation); Geng et al. 2021 (phantom gradients); Bai et al. 2022 (fixed-point
correction).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from layercompiler.derivatives.solves import LinearSolve
from layercompiler.errors import OptionError
from layercompiler.implicit.iterations import Anderson, Solver
from layercompiler.implicit.problem import FixedPoint
from layercompiler.torch.implicit import ImplicitLayer


class Equilibrium(torch.nn.Module):
    """z with z = cell(z, *inputs), as a module.

    Args:
        cell: A module or function (z, *inputs) -> z. Its parameters, and tensors it captures, are differentiated.
        init: (*inputs) -> where to start and what z looks like; by default zeros like the first input.
        forward: Fixed-point solver: `Anderson`, `Picard`, `Broyden`, `Newton`.
        backward: Linear solve of the backward pass, `layercompiler.linear.BiCGSTAB(tol=...)` or `Neumann(k)` for instance; None to choose.
        batch: Number of leading dimensions of z that the cell treats as independent instances.
        gradient: "implicit", or "phantom": `phantom_steps` damped steps of the cell at the fixed point are differentiated instead.
        phantom_steps: Number of those steps.
        phantom_damping: Their damping in (0, 1].
        tolerance: Above tolerance * (1 + |z|), |z - cell(z)| says that the solver did not converge; None skips the check.
        on_error: "raise", "warn" or "flag" then.
    """

    def __init__(
        self,
        cell: Callable[..., torch.Tensor],
        *,
        init: Callable[..., Any] | None = None,
        forward: Solver | None = None,
        backward: LinearSolve | None = None,
        batch: int = 1,
        gradient: str = "implicit",
        phantom_steps: int = 1,
        phantom_damping: float = 1.0,
        tolerance: float | None = 1e-2,
        on_error: str = "warn",
    ) -> None:
        super().__init__()
        if gradient not in ("implicit", "phantom"):
            raise OptionError("unknown gradient of an equilibrium network", expected="'implicit' or 'phantom'", got=repr(gradient))
        self.cell, self.gradient, self.phantom_steps, self.phantom_damping = cell, gradient, phantom_steps, phantom_damping
        problem = FixedPoint(
            cell,
            forward or Anderson(tol=1e-6),
            init=init or (lambda x, *_: torch.zeros_like(x)),
            batch=batch,
            linear_solve=backward,
            tolerance=tolerance,
            on_error=on_error,
        )
        self.solve = ImplicitLayer(problem)

    def forward(self, *inputs: torch.Tensor, init: torch.Tensor | None = None) -> torch.Tensor:
        """The equilibrium for a batch of inputs; `init` warm-starts it."""
        if self.gradient == "implicit":
            return self.solve(*inputs, init=init)
        with torch.no_grad():
            z = self.solve(*inputs, init=init)
        for _ in range(self.phantom_steps):
            z = (1 - self.phantom_damping) * z + self.phantom_damping * self.cell(z, *inputs)
        return z


def jacobian_penalty(cell: Callable[..., torch.Tensor], z: torch.Tensor, *inputs: torch.Tensor, probes: int = 1) -> torch.Tensor:
    """Hutchinson's estimate of |d cell / dz|_F^2 per entry of z, at the equilibrium z; differentiable, to be added to a loss."""
    z = z.detach().requires_grad_()
    value = cell(z, *inputs)
    total = value.new_zeros(())
    for _ in range(probes):
        v = torch.randn_like(value)
        (pulled,) = torch.autograd.grad(value, z, v, create_graph=True)
        total = total + pulled.square().sum() / z.numel()
    return total / probes


def spectral_radius(cell: Callable[..., torch.Tensor], z: torch.Tensor, *inputs: torch.Tensor, iterations: int = 100) -> torch.Tensor:
    """Estimate of the spectral radius of d cell / dz for every instance of a batch (B, ...), by power iteration; (B,)."""
    z = z.detach().requires_grad_()
    value = cell(z, *inputs)
    v = torch.randn_like(z)
    axes = tuple(range(1, z.dim()))
    size = v.norm(dim=axes, keepdim=True) if axes else v.abs()
    for _ in range(iterations):
        v = v / size.clamp_min(1e-30)
        (v,) = torch.autograd.grad(value, z, v, retain_graph=True)
        size = torch.linalg.vector_norm(v, dim=axes, keepdim=True) if axes else v.abs()
    return size.detach().reshape(-1)


def contractive(module: torch.nn.Module, bound: float = 0.9, names: Sequence[str] = ("weight",)) -> torch.nn.Module:
    """Give the matrices of a module (`names`, in every submodule) a spectral norm of at most `bound`, by a differentiable rescaling."""

    class Bounded(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            norm = torch.linalg.matrix_norm(weight.flatten(1), 2)
            return weight * torch.clamp(bound / norm, max=1.0)

    for part in list(module.modules()):
        for name in names:
            weight = part._parameters.get(name)
            if weight is not None and weight.dim() >= 2:
                torch.nn.utils.parametrize.register_parametrization(part, name, Bounded())
    return module


def correction(
    loss: Callable[[torch.Tensor], torch.Tensor], states: Sequence[torch.Tensor], weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Fixed-point correction: a weighted mean of the loss over states of the iteration, later ones weighing more by default."""
    given = weights if weights is not None else [0.5 ** (len(states) - 1 - i) for i in range(len(states))]
    return sum((w * loss(z) for w, z in zip(given, states, strict=True)), start=states[0].new_zeros(())) / sum(given)
