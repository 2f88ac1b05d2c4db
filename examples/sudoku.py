"""Learns the rules of 4 x 4 Sudoku from solved boards alone, as the constraints of a quadratic program (OptNet, section 4.4).

A board is 64 numbers, one-hot; blank cells are zero. Nothing of the game is told to the model but that the answer is

    minimise 0.05 |x|^2 - board'x   subject to   A x = b,  x >= 0

with A (40 x 64) learned, and b = A exp(l) with l learned too, so that the constraints can always be met.
A convolutional network of the paper's size learns the same boards beside it.

    python examples/sudoku.py            the experiment, some minutes on two cores; writes sudoku.png
    python examples/sudoku.py --short    a few steps, seconds
    python examples/sudoku.py --alone    also A without l, whose constraints cannot be met at first
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


class Convolutions(torch.nn.Module):
    """The paper's rival: ten convolutional layers of 3 x 3."""

    def __init__(self, width=48, depth=10):
        super().__init__()
        sizes = [SIDE, *[width] * (depth - 1)]
        layers = [torch.nn.Sequential(torch.nn.Conv2d(a, b, 3, padding=1), torch.nn.ReLU()) for a, b in itertools.pairwise(sizes)]
        self.net = torch.nn.Sequential(*layers, torch.nn.Conv2d(width, SIDE, 1))

    def forward(self, boards):
        """Answers (B, 64) to boards (B, 64)."""
        images = boards.reshape(-1, SIDE, SIDE, SIDE).permute(0, 3, 1, 2).float()
        return self.net(images).permute(0, 2, 3, 1).reshape(len(boards), -1).double()


def wrong(model, boards, solutions):
    """The share of boards with any wrong cell."""
    model.eval()
    with torch.no_grad():
        answers = torch.cat([model(part) for part in boards.split(500)])
    model.train()
    cells = answers.reshape(-1, SIDE * SIDE, SIDE).argmax(-1) != solutions.reshape(-1, SIDE * SIDE, SIDE).argmax(-1)
    return cells.any(-1).double().mean().item()


def learn(name, model, train, test, steps, rate, looks):
    """Adam on the mean squared error; (steps, share of wrong test boards) at some of the steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    generator, curve, began = torch.Generator().manual_seed(0), [(0, wrong(model, *test))], time.perf_counter()
    for step in range(1, steps + 1):
        index = torch.randint(len(train[0]), (BATCH,), generator=generator)
        optimizer.zero_grad()
        (model(train[0][index]) - train[1][index]).square().mean().backward()
        optimizer.step()
        if step % max(steps // looks, 1) == 0:
            curve.append((step, wrong(model, *test)))
            took = 1e3 * (time.perf_counter() - began) / step
            print(f"  {name:28s} step {step:5d}/{steps}  wrong boards {100 * curve[-1][1]:6.2f} %  {took:6.1f} ms a step", flush=True)
            if curve[-1][1] == 0.0:
                break
    return curve


def main(short=False, alone=False):
    """The experiment; returns the curves by model."""
    torch.manual_seed(0)
    count, held_out, steps = (800, 200, 12) if short else (10_000, 1_000, 600)
    boards, solutions = data(count)
    train, test = (boards[:-held_out], solutions[:-held_out]), (boards[-held_out:], solutions[-held_out:])
    print(f"{count - held_out} boards to learn from, {held_out} held out; {float(boards.sum(1).mean()):.1f} of 16 cells given on average")
    curves = {"rules (constraints learned)": learn("rules", Rules(), train, test, steps, 1e-2, 12)}
    if alone:
        curves["A alone (closest programs)"] = learn("A alone", Alone(), train, test, steps, 1e-2, 12)
    curves["convolutional network"] = learn("convolutional network", Convolutions(), train, test, steps, 1e-3, 6)
    for name, curve in curves.items():
        print(f"{name:36s} wrong boards after {curve[-1][0]:5d} steps: {100 * curve[-1][1]:6.2f} %")
    draw(curves)
    return curves


def draw(curves):
    """Saves sudoku.png: the share of wrong boards over the steps."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, curve in curves.items():
        axis.plot(*zip(*[(s, 100 * e) for s, e in curve], strict=True), "o-", label=name)
    axis.axhline(1, color="0.7", linestyle="--")
    axis.set(
        xlabel=f"steps of {BATCH} boards", ylabel="held-out boards with a wrong cell, %", title="4 x 4 Sudoku, learned from boards alone"
    )
    axis.legend()
    figure.savefig("sudoku.png", dpi=130)
    print("The picture is in sudoku.png")


if __name__ == "__main__":
    main(short="--short" in sys.argv, alone="--alone" in sys.argv)
