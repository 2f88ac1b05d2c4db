"""Equilibrium networks: gradients to parameters and inputs equal those of long unrolling, to second order, in constant memory."""

import pytest
import torch

from layercompiler.derivatives.solves import BiCGSTAB, Neumann
from layercompiler.implicit import Anderson, Broyden, Picard
from layercompiler.torch.equilibrium import Equilibrium, contractive, correction, jacobian_penalty, spectral_radius


class Cell(torch.nn.Module):
    def __init__(self, n=6, k=4):
        super().__init__()
        torch.manual_seed(0)
        self.W, self.U = torch.nn.Linear(n, n, dtype=torch.float64), torch.nn.Linear(k, n, dtype=torch.float64)
        with torch.no_grad():
            self.W.weight.mul_(0.8)

    def forward(self, z, x):
        return torch.tanh(self.W(z) + self.U(x))


def zeros(x):
    return x.new_zeros(x.shape[0], 6)


@pytest.mark.parametrize("solver", [Picard(tol=1e-13), Anderson(tol=1e-13), Broyden(tol=1e-13)], ids=lambda s: type(s).__name__)
def test_gradients_of_parameters_and_inputs(solver):
    cell, x = Cell(), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    layer = Equilibrium(cell, init=zeros, forward=solver)
    assert {n for n, _ in layer.named_parameters()} >= {"cell.W.weight", "cell.U.bias"}
    z = zeros(x)
    for _ in range(200):
        z = cell(z, x)
    leaves = [x, *cell.parameters()]
    want = torch.autograd.grad(z.square().sum(), leaves)
    got = torch.autograd.grad(layer(x).square().sum(), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_second_order_is_right():
    """Double backward of a peer is off by order one."""
    cell, x = Cell(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    layer = Equilibrium(cell, init=zeros, forward=Picard(tol=1e-14), backward=BiCGSTAB(tol=1e-13))

    def penalty(z):
        g = torch.autograd.grad(z.square().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(g.square().sum(), cell.W.weight)[0]

    z = zeros(x)
    for _ in range(300):
        z = cell(z, x)
    torch.testing.assert_close(penalty(layer(x)), penalty(z), rtol=1e-9, atol=1e-11)


def test_memory_does_not_grow_with_iterations():
    cell, x = Cell(), torch.randn(8, 4, dtype=torch.float64)
    saved = []
    for k in (10, 300):
        layer = Equilibrium(cell, init=zeros, forward=Picard(tol=0.0, maxiter=k), tolerance=None)
        kept = set()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.add(t.untyped_storage().data_ptr()) or t, lambda t: t):
            layer(x)
        saved.append(len(kept))
    assert saved[0] == saved[1] <= 10


def test_phantom_and_truncated_gradients_are_asked_for_and_inexact():
    cell, x = Cell(), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    exact = torch.autograd.grad(Equilibrium(cell, init=zeros, forward=Picard(tol=1e-13))(x).sum(), x)[0]
    phantom = Equilibrium(cell, init=zeros, forward=Picard(tol=1e-13), gradient="phantom", phantom_steps=1)
    errors = [float((torch.autograd.grad(phantom(x).sum(), x)[0] - exact).norm() / exact.norm())]
    for terms in (1, 2, 60):
        layer = Equilibrium(cell, init=zeros, forward=Picard(tol=1e-13), backward=Neumann(terms))
        errors.append(float((torch.autograd.grad(layer(x).sum(), x)[0] - exact).norm() / exact.norm()))
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)  # one phantom step is one term of the series
    assert errors[1] > errors[2] > 1e-3 and errors[3] < 1e-9


def test_regularisers():
    cell, x = Cell(), torch.randn(400, 4, dtype=torch.float64)
    z = Equilibrium(cell, init=zeros, forward=Picard(tol=1e-12))(x)
    J = torch.func.vmap(torch.func.jacrev(cell))(z, x)
    torch.manual_seed(1)
    got = jacobian_penalty(cell, z, x, probes=50)
    torch.testing.assert_close(got, J.square().sum() / z.numel(), rtol=0.05, atol=0)
    assert torch.autograd.grad(got, cell.W.weight)[0].abs().max() > 0
    assert (spectral_radius(cell, z[:5], x[:5]).max() <= torch.linalg.matrix_norm(J[:5], 2).max() * 1.001).all()
    bounded = contractive(Cell(), 0.3)
    assert float(torch.linalg.matrix_norm(bounded.W.weight.detach(), 2)) <= 0.3 + 1e-12
    layer = Equilibrium(bounded, init=zeros, forward=Picard(tol=1e-13))
    (g,) = torch.autograd.grad(layer(x[:3]).sum(), bounded.W.parametrizations.weight.original)
    assert torch.isfinite(g).all() and g.abs().max() > 0
    states = [z * 0.5, z]
    torch.testing.assert_close(correction(lambda v: v.sum(), states), (0.5 * states[0].sum() + states[1].sum()) / 1.5)
