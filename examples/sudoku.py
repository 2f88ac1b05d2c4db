"""Learns the rules of 4 x 4 Sudoku from solved boards alone, as the constraints of a quadratic program (OptNet, section 4.4).

A board is 64 numbers, one-hot; blank cells are zero. Nothing of the game is told to the model but that the answer is

    minimise 0.05 |x|^2 - board'x   subject to   A x = b,  x >= 0

with A (40 x 64) learned, and b = A exp(l) with l learned too, so that the constraints can always be met. A second model learns A with
b = 1: then no board can meet the constraints at first, and gradients are those of the closest program that can be met (QPLayer, Bambade
et al. 2024). A convolutional network of the paper's depth learns the same boards beside them.

    python examples/sudoku.py            the experiment, two minutes on one core; writes sudoku.png
    python examples/sudoku.py --short    a few steps, seconds
"""

import itertools
import random
import sys
import time

import cvxpy as cp
import matplotlib
import numpy as np
import torch

import layercompiler as lc

SIDE, CELLS, BATCH, RULES = 4, 64, 150, 40
FIRST = (1, 2, 4, 7, 10, 15)  # steps after which to look, besides those at regular distances


def full_board(rng):
    """A solved board, filled cell by cell, starting again at a dead end."""
    while True:
        board = np.zeros((SIDE, SIDE), int)
        for i in range(SIDE):
            for j in range(SIDE):
                a, b = 2 * (i // 2), 2 * (j // 2)
                free = sorted(set(range(1, SIDE + 1)) - set(board[i]) - set(board[:, j]) - set(board[a : a + 2, b : b + 2].ravel()))
                if not free:
                    break
                board[i, j] = rng.choice(free)
            else:
                continue
            break
        else:
            return board


def puzzle(board, keep, rng):
    """The board with cells taken away while each can be told from its row, column or square alone."""
    board = board.copy()
    cells = [(i, j) for i in range(SIDE) for j in range(SIDE)]
    rng.shuffle(cells)
    left = SIDE * SIDE
    for i, j in cells:
        if left <= keep:
            break
        number, a, b = board[i, j], 2 * (i // 2), 2 * (j // 2)
        possible = set(range(1, SIDE + 1)) - ((set(board[i]) | set(board[:, j]) | set(board[a : a + 2, b : b + 2].ravel())) - {number})
        if len(possible) == 1:
            board[i, j] = 0
            left -= 1
    return board


def data(count):
    """(boards, solutions), (count, 64) each, one-hot."""
    rng, keeps = random.Random(0), np.random.RandomState(0)
    boards, solutions = np.zeros((count, SIDE, SIDE, SIDE)), np.zeros((count, SIDE, SIDE, SIDE))
    for n in range(count):
        solved = full_board(rng)
        given = puzzle(solved, keeps.randint(0, SIDE), rng)
        for number in range(SIDE):
            boards[n, ..., number], solutions[n, ..., number] = given == number + 1, solved == number + 1
    return torch.tensor(boards.reshape(count, -1)), torch.tensor(solutions.reshape(count, -1))


class Rules(torch.nn.Module):
    """The quadratic program, its constraints learned."""

    def __init__(self):
        super().__init__()
        A, b, board = cp.Parameter((RULES, CELLS), name="A"), cp.Parameter(RULES, name="b"), cp.Parameter(CELLS, name="board")
        x = cp.Variable(CELLS, name="x")
        problem = cp.Problem(cp.Minimize(0.05 * cp.sum_squares(x) - board @ x), [A @ x == b, x >= 0])
        self.layer = lc.export(problem, "torch", parameters=[A, b, board], variables=[x])
        self.A = torch.nn.Parameter(torch.rand((RULES, CELLS), dtype=torch.float64))
        self.inside = torch.nn.Parameter(torch.zeros(CELLS, dtype=torch.float64))

    def forward(self, boards):
        """Answers (B, 64) to boards (B, 64)."""
        return self.layer(self.A, self.A @ self.inside.exp(), boards)[0]

    def unmet(self, answers):
        """The share of answers that do not meet the constraints."""
        return (answers @ self.A.T - self.A @ self.inside.exp()).abs().amax(-1).gt(1e-6).double().mean().item()


class Alone(torch.nn.Module):
    """A learned alone, with b = 1: no board can be answered at first, and the closest programs show A the way."""

    def __init__(self):
        super().__init__()
        program = lc.QP(0.1 * np.eye(CELLS), np.zeros(CELLS), -np.eye(CELLS), np.zeros(CELLS), np.zeros((RULES, CELLS)), np.ones(RULES))
        self.layer = lc.export(program, "torch", parameters=["p", "A"], on_error="closest")
        self.A = torch.nn.Parameter(torch.rand((RULES, CELLS), dtype=torch.float64))

    def forward(self, boards):
        """Answers (B, 64) to boards (B, 64)."""
        return self.layer(-boards, self.A)[0]

    def unmet(self, answers):
        """The share of answers that do not meet the constraints."""
        return (answers @ self.A.T - 1).abs().amax(-1).gt(1e-6).double().mean().item()


class Convolutions(torch.nn.Module):
    """The paper's rival: ten convolutional layers of 3 x 3 (48 channels for its 512, which take a GPU)."""

    def __init__(self, width=48, depth=10):
        super().__init__()
        sizes = [SIDE, *[width] * (depth - 1)]
        layers = [torch.nn.Sequential(torch.nn.Conv2d(a, b, 3, padding=1), torch.nn.ReLU()) for a, b in itertools.pairwise(sizes)]
        self.net = torch.nn.Sequential(*layers, torch.nn.Conv2d(width, SIDE, 1))

    def forward(self, boards):
        """Answers (B, 64) to boards (B, 64)."""
        images = boards.reshape(-1, SIDE, SIDE, SIDE).permute(0, 3, 1, 2).float()
        return self.net(images).permute(0, 2, 3, 1).reshape(len(boards), -1).double()


def look(model, boards, solutions):
    """The shares of boards with any wrong cell, and of answers that do not meet the model's constraints."""
    model.eval()
    with torch.no_grad():
        answers = torch.cat([model(part) for part in boards.split(500)])
        unmet = model.unmet(answers) if hasattr(model, "unmet") else 0.0
    model.train()
    cells = answers.reshape(-1, SIDE * SIDE, SIDE).argmax(-1) != solutions.reshape(-1, SIDE * SIDE, SIDE).argmax(-1)
    return cells.any(-1).double().mean().item(), unmet


def learn(name, model, train, test, steps, rate, every):
    """Adam on the mean squared error until no test board is wrong; (step, wrong, unmet) at the first steps and every so many."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    generator, curve, seconds = torch.Generator().manual_seed(0), [(0, *look(model, *test))], 0.0
    for step in range(1, steps + 1):
        began = time.perf_counter()
        index = torch.randint(len(train[0]), (BATCH,), generator=generator)
        optimizer.zero_grad()
        (model(train[0][index]) - train[1][index]).square().mean().backward()
        optimizer.step()
        seconds += time.perf_counter() - began
        if step % every == 0 or step in FIRST:
            curve.append((step, *look(model, *test)))
            wrong, unmet = (100 * share for share in curve[-1][1:])
            told = f"  constraints unmet {unmet:6.2f} %" if hasattr(model, "unmet") else ""
            print(f"  {name:24s} step {step:5d}  {seconds:6.1f} s  wrong {wrong:6.2f} %{told}", flush=True)
            if wrong == 0.0:
                break
    return curve


def main(short=False):
    """The experiment; returns the curves by model."""
    torch.manual_seed(0)
    count, held_out, divisor = (800, 200, 100) if short else (10_000, 1_000, 1)
    boards, solutions = data(count)
    train, test = (boards[:-held_out], solutions[:-held_out]), (boards[-held_out:], solutions[-held_out:])
    print(f"{count - held_out} boards to learn from, {held_out} held out; {float(boards.sum(1).mean()):.1f} of 16 cells given on average")
    models = {
        "constraints learned": (Rules(), 600, 1e-2, 25),
        "A alone, unmet at first": (Alone(), 600, 1e-2, 25),
        "convolutional network": (Convolutions(), 1500, 1e-3, 100),
    }
    curves = {}
    for name, (model, steps, rate, every) in models.items():
        curves[name] = learn(name, model, train, test, max(steps // divisor, 6), rate, max(every // divisor, 3))
    for name, curve in curves.items():
        under = next((step for step, wrong, _ in curve if wrong < 0.01), None)
        when = f"under 1 % after {under} steps" if under else "never under 1 %"
        print(f"{name:28s} wrong boards after {curve[-1][0]:5d} steps: {100 * curve[-1][1]:6.2f} %; {when}")
    draw(curves)
    return curves


def draw(curves):
    """Saves sudoku.png: the shares of wrong boards, and of answers that do not meet the constraints, over the steps."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for (name, curve), color in zip(curves.items(), ("C0", "C3", "C2"), strict=True):
        steps, wrong, unmet = (np.array(column) for column in zip(*curve, strict=True))
        axis.plot(steps, 100 * wrong, "o-", color=color, markersize=3, label=name)
        if unmet.any():
            axis.plot(steps, 100 * unmet, ":", color=color, label=f"{name}: constraints not met")
    axis.axhline(1, color="0.7", linestyle="--", label="1 %")
    axis.set(
        xlabel=f"steps of {BATCH} boards", ylabel="held-out boards with a wrong cell, %", title="4 x 4 Sudoku, learned from boards alone"
    )
    axis.set_xscale("symlog", linthresh=10)
    axis.set_xlim(left=0)
    axis.legend(fontsize="small")
    figure.savefig("sudoku.png", dpi=130)
    print("The picture is in sudoku.png")


if __name__ == "__main__":
    main(short="--short" in sys.argv)
