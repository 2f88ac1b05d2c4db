"""Motion planning around obstacles, with the weights of the costs learned from one demonstration.

A path of 16 places in the plane minimises weighted squares: of its accelerations, and of how far it enters the neighbourhood of
obstacles. The weights and the width of that neighbourhood are learned so that planned paths are like a demonstrated one. Takes under a
minute and writes least_squares_motion.png.
"""

import matplotlib
import numpy as np
import torch

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PLACES, STEPS = 16, 12
OBSTACLES = np.array([[0.25, 0.15, 0.12], [0.5, -0.12, 0.15], [0.75, 0.12, 0.12]])


def planner():
    """A layer of three learned numbers and the two ends."""
    inner = np.arange(PLACES)

    def turn(a, b, c):
        return (a - 2 * b + c) * PLACES

    def first(a, b, start):
        return (b - 2 * a + start) * PLACES

    def enter(a, obstacle, width):
        gap = torch.sqrt((a - obstacle[:2]).square().sum() + 1e-9) - obstacle[2]
        return width * torch.nn.functional.softplus((width - gap) / (0.4 * width))

    pairs = np.stack(np.meshgrid(inner, np.arange(len(OBSTACLES)), indexing="ij"), axis=-1).reshape(-1, 2)
    return lc.LeastSquares(
        variables={"x": lc.Euclidean(PLACES, 2)},
        factors=[
            lc.factor(turn, on=("x",) * 3, index=np.stack([inner[:-2], inner[1:-1], inner[2:]], axis=1), weight=lc.Scale("smooth")),
            lc.factor(first, on=("x", "x"), index=np.array([[0, 1]]), shared="start", weight=lc.Scale("smooth"), name="start"),
            lc.factor(
                first, on=("x", "x"), index=np.array([[PLACES - 1, PLACES - 2]]), shared="goal", weight=lc.Scale("smooth"), name="goal"
            ),
            lc.factor(enter, on="x", index=pairs[:, 0], data=OBSTACLES[pairs[:, 1]], shared="width", weight=lc.Scale("avoid")),
        ],
        parameters={"start": (2,), "goal": (2,), "smooth": (), "avoid": (), "width": ()},
    )


def main():
    """Learn from one path, plan others, draw."""
    layer = lc.export(planner(), "torch", options={"max_iterations": 1000, "tolerance": 1e-7})
    start, goal = torch.tensor([0.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    line = start + (goal - start) * torch.linspace(0, 1, PLACES + 2, dtype=torch.float64)[1:-1, None]

    def plan(logs, start=start, goal=goal):
        init = {"x": (line + torch.tensor([0.0, 0.02], dtype=torch.float64)).numpy()}
        return layer(start, goal, *logs.exp(), init=init)[0]

    shown = plan(torch.tensor([0.1, 2.0, 0.12], dtype=torch.float64).log()).detach()
    logs = torch.tensor([0.3, 1.0, 0.05], dtype=torch.float64).log().requires_grad_()
    optimizer = torch.optim.Adam([logs], lr=0.2)
    losses, paths = [], []
    for _ in range(STEPS):
        path = plan(logs)
        loss = (path - shown).square().sum(dim=1).mean().sqrt()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        paths.append(path.detach().numpy())
    print(f"distance from the demonstration: {losses[0]:.4f} at first, {min(losses):.4f} learned")

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for x, y, r in OBSTACLES:
        left.add_patch(plt.Circle((x, y), r, color="0.8"))
    left.plot(*shown.numpy().T, "k--", label="demonstrated")
    left.plot(*paths[0].T, label="first")
    left.plot(*paths[-1].T, label="learned")
    left.set(aspect="equal", xlim=(-0.05, 1.05), ylim=(-0.45, 0.45))
    left.legend(fontsize=8)
    right.semilogy(losses)
    right.set(xlabel="step", ylabel="distance from the demonstration")
    figure.tight_layout()
    figure.savefig("least_squares_motion.png", dpi=120)
    assert min(losses) < 0.3 * losses[0]


if __name__ == "__main__":
    main()
