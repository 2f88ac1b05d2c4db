"""State estimation from GPS and odometry, with the accuracies of the two sensors learned.

A vehicle's poses in the plane are estimated from positions and from relative motions; how much to trust each is learned from drives
whose truth is known, through the exact derivative of the estimate, and judged on other drives. Takes under a minute and writes
least_squares_tracking.png.
"""

import matplotlib
import numpy as np
import torch

import layercompiler as lc
from layercompiler import arrays
from layercompiler.manifolds import SE2

matplotlib.use("Agg")
import matplotlib.pyplot as plt

XP, POSES, BATCH, STEPS = arrays.get("numpy"), 60, 16, 60
GPS, MOTION, TURN = 0.5, 0.05, 0.02


def drives(rng):
    """True poses, odometry and positions."""
    steps = np.zeros((BATCH, POSES - 1, 3))
    steps[..., 0], steps[..., 2] = 1.0, 0.2 * np.sin(np.arange(POSES - 1) / 4 + rng.uniform(0, 6, (BATCH, 1)))
    truth = [np.tile(SE2.identity(), (BATCH, 1))]
    for k in range(POSES - 1):
        truth.append(SE2.retract(XP, truth[-1], steps[:, k]))
    truth = np.stack(truth, axis=1)
    noise = rng.standard_normal(steps.shape) * np.array([MOTION, MOTION, TURN])
    between = SE2.compose(XP, SE2.inverse(XP, truth[:, :-1]), truth[:, 1:])
    return truth, SE2.retract(XP, between, noise), truth[..., 2:] + GPS * rng.standard_normal((BATCH, POSES, 2))


def move(a, b, z):
    """Odometry."""
    return z.local(a.between(b))


def stand(a, z):
    """GPS."""
    return a.data[2:] - z


def main():
    """Learn the weights, draw."""
    every = np.arange(POSES)
    problem = lc.LeastSquares(
        variables={"X": lc.SE2(POSES)},
        factors=[
            lc.factor(move, on=("X", "X"), index=np.stack([every[:-1], every[1:]], axis=1), data="odometry", weight=lc.Diagonal("w")),
            lc.factor(stand, on="X", index=every, data="positions", weight=lc.Scale("g")),
        ],
        parameters={"odometry": lc.SE2(POSES - 1), "positions": (POSES, 2), "w": (3,), "g": ()},
    )
    layer = lc.export(problem, "torch")

    def estimate(drive, logs):
        """Poses, and the root mean square error of positions."""
        truth, odometry, positions = drive
        start = [truth[:, 0]]
        for k in range(POSES - 1):
            start.append(SE2.compose(XP, start[-1], odometry[:, k]))
        start = np.stack(start, axis=1)
        (X,) = layer(torch.tensor(odometry), torch.tensor(positions), logs[:3].exp(), logs[3].exp(), init={"X": start})
        return X, (X[..., 2:] - torch.tensor(truth[..., 2:])).square().sum(dim=-1).mean().sqrt(), start

    train, test = drives(np.random.default_rng(0)), drives(np.random.default_rng(1))
    logs = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=0.15)
    errors = []
    for _ in range(STEPS):
        _, loss, _ = estimate(train, logs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    w = logs.detach().exp().numpy()
    with torch.no_grad():
        before, first, start = estimate(test, torch.zeros(4, dtype=torch.float64))
        after, last, _ = estimate(test, logs)
        known = torch.tensor(np.log([1 / MOTION, 1 / MOTION, 1 / TURN, 1 / GPS]))
        _, ideal, _ = estimate(test, known)
    print(f"error of positions on other drives: {first:.3f} with equal trust, {last:.3f} learned, {ideal:.3f} with the true accuracies")
    print(
        f"trust in odometry over GPS: {w[0] / w[3]:.1f} along, {w[2] / w[3]:.1f} in turns (true: {GPS / MOTION:.0f} and {GPS / TURN:.0f})"
    )
    truth, _, positions = test
    seen = before.numpy(), after.numpy()

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    left.plot(*truth[0, :, 2:].T, "k--", label="truth")
    left.plot(*positions[0].T, ".", color="0.7", label="GPS")
    left.plot(*start[0, :, 2:].T, ":", label="odometry")
    left.plot(*seen[0][0, :, 2:].T, label="equal trust")
    left.plot(*seen[-1][0, :, 2:].T, label="learned")
    left.legend(fontsize=8)
    right.plot(errors, ".-")
    right.set(xlabel="step", ylabel="error of positions")
    figure.tight_layout()
    figure.savefig("least_squares_tracking.png", dpi=120)
    assert last < 0.8 * first and last < 1.1 * ideal


if __name__ == "__main__":
    main()
