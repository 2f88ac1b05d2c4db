"""Inverse kinematics of an arm of five joints, with the posture it prefers learned from demonstrations.

The joints reach for a target and, weakly, for a posture of rest; a redundant arm reaches every target in many ways, and the posture
decides. It is learned from postures that a demonstrator took. Takes under a minute and writes least_squares_kinematics.png.
"""

import matplotlib
import numpy as np
import torch

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

JOINTS, BATCH, STEPS = 5, 16, 15


def places(q):
    """Joints and hand (..., 6, 2) of angles (..., 5), each link of length 0.2."""
    angle = torch.cumsum(q, dim=-1)
    steps = 0.2 * torch.stack([torch.cos(angle), torch.sin(angle)], dim=-1)
    return torch.cat([torch.zeros_like(steps[..., :1, :]), torch.cumsum(steps, dim=-2)], dim=-2)


def reach(q, target):
    """The hand from its target, weighted highly."""
    return 30 * (places(q)[-1] - target)


def relax(q, rest):
    """The joints from the posture of rest."""
    return q - rest


def main():
    """Learn the posture, draw."""
    rng = np.random.default_rng(0)
    radius, angle = rng.uniform(0.4, 0.8, BATCH), rng.uniform(0.2, 1.4, BATCH)
    targets = torch.tensor(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1))
    problem = lc.LeastSquares(
        variables={"q": lc.Euclidean(JOINTS, init=[0.3] * JOINTS, lower=-2.5, upper=2.5)},
        factors=[lc.factor(reach, on="q", data="target"), lc.factor(relax, on="q", data="rest")],
        parameters={"target": (2,), "rest": (JOINTS,)},
    )
    layer = lc.export(problem, "torch", options={"max_iterations": 200})
    taught = torch.tensor([1.2, -0.6, -0.5, 0.3, 0.4], dtype=torch.float64)
    shown = layer(targets, taught)[0].detach()
    rest = torch.full((JOINTS,), 0.3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([rest], lr=0.25)
    losses, seen = [], []
    for _ in range(STEPS):
        (q,) = layer(targets, rest)
        loss = (q - shown).square().sum(dim=1).mean().sqrt()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seen.append(q.detach())
    miss = (places(seen[-1])[:, -1] - targets).norm(dim=1).max()
    print(f"distance from the demonstrated postures: {losses[0]:.3f} at first, {losses[-1]:.3f} learned; hands miss by {miss:.1e} at most")

    figure, axes = plt.subplots(1, 3, figsize=(14, 4))
    for axis, (name, q) in zip(axes, {"first": seen[0], "learned": seen[-1]}.items(), strict=False):
        for k in range(4):
            axis.plot(*places(shown)[k].numpy().T, "k:", lw=1)
            axis.plot(*places(q)[k].numpy().T, ".-")
            axis.plot(*targets[k].numpy(), "kx")
        axis.set(title=f"{name} (demonstrated dotted)", aspect="equal")
    axes[2].semilogy(losses)
    axes[2].set(xlabel="step", ylabel="distance from the demonstrations")
    figure.tight_layout()
    figure.savefig("least_squares_kinematics.png", dpi=120)
    assert losses[-1] < 0.5 * losses[0]


if __name__ == "__main__":
    main()
