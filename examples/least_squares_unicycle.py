"""Steering a unicycle, written in the CVXPY DSL: nonconvex dynamics, bounds, a fixed first state, and a learned price of turning.

CVXPY has no convex form for this; it is recognised as least squares, compiled once, solved for a batch of starts, and differentiated. Takes
under a minute and writes least_squares_unicycle.png.
"""

import cvxpy as cp
import matplotlib
import numpy as np
import torch

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STATES, DT, BATCH, STEPS = 25, 0.2, 8, 12


def main():
    """Learn the price from one driver's path, draw."""
    X, U = cp.Variable((STATES, 3), name="X"), cp.Variable((STATES - 1, 2), name="U")
    first, goal = cp.Parameter(3, name="first"), cp.Parameter(3, name="goal")
    price = cp.Parameter(2, nonneg=True, name="price")
    speed, turn, heading = U[:, 0], U[:, 1], X[:-1, 2]
    rates = cp.vstack([cp.multiply(speed, cp.nlp.cos(heading)), cp.multiply(speed, cp.nlp.sin(heading)), turn]).T
    dynamics = 300 * cp.sum_squares(X[1:] - X[:-1] - DT * rates)
    arrival = 30 * cp.sum_squares(X[-1] - goal)
    effort = price[0] * cp.sum_squares(speed) + price[1] * cp.sum_squares(turn)
    problem = cp.Problem(cp.Minimize(dynamics + arrival + effort), [X[0] == first, speed >= -0.2, speed <= 1.0])

    layer = lc.export(problem, "torch", parameters=[first, goal, price], variables=[X, U], options={"max_iterations": 200})
    print(layer.compiled.report())
    rng = np.random.default_rng(0)
    starts = torch.tensor(rng.uniform((-0.3, -1.0, -0.4), (0.3, 1.0, 0.4), (BATCH, 3)))
    target = torch.tensor([3.0, 0.5, 0.5], dtype=torch.float64)
    shown = layer(starts, target, torch.tensor([0.05, 0.5], dtype=torch.float64))[0].detach()
    logs = torch.tensor([0.3, 0.05], dtype=torch.float64).log().requires_grad_()
    optimizer = torch.optim.Adam([logs], lr=0.5)
    losses, seen = [], []
    for _ in range(STEPS):
        states, _ = layer(starts, target, logs.exp())
        loss = (states - shown)[..., :2].square().sum(dim=-1).mean().sqrt()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seen.append(states.detach())
    print(f"distance from the driver's paths: {losses[0]:.4f} at first, {min(losses):.4f} learned")

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for k in range(BATCH):
        left.plot(*shown[k, :, :2].numpy().T, "k:")
        left.plot(*seen[0][k, :, :2].numpy().T, "C3", lw=0.7)
        left.plot(*seen[-1][k, :, :2].numpy().T, "C0")
    left.set(title="driver dotted, first red, learned blue", aspect="equal")
    right.semilogy(losses, ".-")
    right.set(xlabel="step", ylabel="distance from the driver's paths")
    figure.tight_layout()
    figure.savefig("least_squares_unicycle.png", dpi=120)
    assert min(losses) < 0.5 * losses[0]


if __name__ == "__main__":
    main()
