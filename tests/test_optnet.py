"""The experiments of OptNet: what the examples start from, and that their layers learn."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from layercompiler import kernels

needs_kernels = pytest.mark.skipif(not kernels.available(), reason="closest programs are solved by the kernels, which are not built")
EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def denoising():
    return load("denoising")


@pytest.fixture(scope="module")
def sudoku():
    return load("sudoku")


@pytest.fixture
def signals(denoising):
    return denoising.data(40)


def variation(denoising, weight=21.0):
    return denoising.Denoiser(torch.diff(torch.eye(100, dtype=torch.float64), dim=0), weight)


def test_total_variation_meets_its_conditions(denoising, signals):
    # x = y - D'u with |u| <= weight, and u = weight sign(Dx) where Dx is not zero
    model = variation(denoising)
    x = model(signals[1]).detach()
    u = torch.cumsum(x - signals[1], 1)[:, :-1]
    jump = torch.diff(x, dim=1)
    assert torch.abs((x - signals[1]).sum(1)).max() < 1e-7
    assert u.abs().max() < 21 + 1e-7
    moves = jump.abs() > 1e-6
    assert torch.allclose(u[moves], 21 * torch.sign(jump[moves]), atol=1e-6)
    assert moves.any(1).all()


def test_tuning_starts_from_total_variation(denoising, signals):
    start = variation(denoising)
    tuned = denoising.Tuned(start, signals[0])
    assert torch.allclose(tuned(signals[1]), start(signals[1]), atol=1e-9)


def test_gradient_of_the_operator_is_right(denoising, signals):
    torch.manual_seed(0)
    model, (clean, noisy) = variation(denoising), (part[:5] for part in signals)
    direction = torch.randn_like(model.D)

    def loss(t):
        return (model.solve(noisy, model.D + t * direction) - clean).square().mean()

    (slope,) = torch.autograd.grad(loss(torch.tensor(0.0)), model.D)
    with torch.no_grad():
        near, far = ((loss(h) - loss(-h)).item() / (2 * h) for h in (5e-7, 1e-6))
    expected = (4 * near - far) / 3
    assert (slope * direction).sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_tuning_lowers_the_error(denoising, signals):
    clean, noisy = signals
    model = denoising.Tuned(variation(denoising), clean)
    losses = denoising.learn("tuned", model, clean, noisy, 12, 1e-2)
    assert denoising.error(model, clean, noisy) < 0.97 * losses[0]


def test_boards_are_solved_by_their_rules(sudoku):
    boards, solutions = sudoku.data(20)
    grids = solutions.reshape(-1, 4, 4, 4).argmax(-1)
    for grid in grids.numpy():
        parts = [*grid, *grid.T, *(grid[a : a + 2, b : b + 2].ravel() for a in (0, 2) for b in (0, 2))]
        assert all(sorted(part) == [0, 1, 2, 3] for part in parts)
    assert torch.all(boards <= solutions)


@needs_kernels
def test_true_rules_solve_every_board(sudoku):
    boards, solutions = sudoku.data(50)
    cells = np.arange(64).reshape(4, 4, 4)
    blocks = cells.reshape(2, 2, 2, 2, 4).transpose(0, 2, 1, 3, 4).reshape(4, 4, 4)
    sets = [cells, cells.transpose(0, 2, 1), cells.transpose(1, 2, 0), blocks.transpose(0, 2, 1)]
    A = np.zeros((64, 64))
    for row, members in enumerate(part for family in sets for part in family.reshape(16, 4)):
        A[row, members] = 1
    keep = [i for i in range(64) if np.linalg.matrix_rank(A[: i + 1]) > (np.linalg.matrix_rank(A[:i]) if i else 0)]
    model = sudoku.Alone()
    assert len(keep) == sudoku.RULES
    model.A.data = torch.tensor(A[keep])
    assert sudoku.look(model, boards, solutions) == (0.0, 0.0)


@needs_kernels
def test_both_models_of_the_rules_learn(sudoku):
    torch.manual_seed(0)
    boards, solutions = sudoku.data(60)
    for model, unmet in ((sudoku.Rules(), 0.0), (sudoku.Alone(), 1.0)):
        assert model.unmet(model(boards)) == unmet
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            losses.append((model(boards) - solutions).square().mean())
            losses[-1].backward()
            optimizer.step()
        assert losses[-1] < losses[0]
