"""Homographies between point sets: a batch of images aligned at once, with the weights of the matches learned.

Each match carries a descriptor of its quality; a logistic regression turns it into a weight, and is trained through the alignment, so that
matches between wrong points lose theirs. Takes a few seconds and writes least_squares_homography.png.
"""

import matplotlib
import numpy as np
import torch

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BATCH, MATCHES, STEPS = 16, 30, 15


def project(H, p):
    """Points (..., 2) under homographies of eight numbers (..., 8)."""
    x, y = p[..., 0], p[..., 1]
    below = 1 + H[..., 6] * x + H[..., 7] * y
    return torch.stack([(H[..., 0] * x + H[..., 1] * y + H[..., 2]) / below, (H[..., 3] * x + H[..., 4] * y + H[..., 5]) / below], dim=-1)


def error(H, p, q):
    """The residual of one match."""
    return project(H, p) - q


def main():
    """Train the weights, draw."""
    rng = np.random.default_rng(0)
    one = np.array([1.0, 0, 0, 0, 1, 0, 0, 0])
    truth = torch.tensor(one + 0.15 * rng.standard_normal((BATCH, 8)))
    p = torch.tensor(rng.uniform(-1, 1, (BATCH, MATCHES, 2)))
    wrong = torch.tensor(rng.random((BATCH, MATCHES)) < 0.25)
    q = project(truth[:, None], p) + 0.01 * torch.tensor(rng.standard_normal((BATCH, MATCHES, 2)))
    q = torch.where(wrong[..., None], q + torch.tensor(rng.uniform(-0.8, 0.8, (BATCH, MATCHES, 2))), q)
    quality = torch.stack([(~wrong).double(), torch.tensor(rng.standard_normal((BATCH, MATCHES)))], dim=-1)
    quality[..., 0] += 0.3 * torch.tensor(rng.standard_normal((BATCH, MATCHES)))

    problem = lc.LeastSquares(
        variables={"H": lc.Euclidean(1, 8, init=one[None])},
        factors=[lc.factor(error, on="H", index=np.zeros(MATCHES, int), data=("p", "q"), weight=lc.Scale("w"))],
        parameters={"p": (MATCHES, 2), "q": (MATCHES, 2), "w": (MATCHES,)},
    )
    layer = lc.export(problem, "torch")
    score = torch.nn.Linear(2, 1, dtype=torch.float64)
    torch.nn.init.zeros_(score.weight)
    torch.nn.init.zeros_(score.bias)
    optimizer = torch.optim.Adam(score.parameters(), lr=0.5)
    corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]], dtype=torch.float64)
    want, losses, seen = project(truth[:, None], corners), [], []
    for _ in range(STEPS):
        w = 1e-3 + torch.sigmoid(score(quality)[..., 0])
        H = layer(p, q, w)[0]
        got = project(H, corners)
        loss = (got - want).square().sum(dim=-1).mean().sqrt()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seen.append(got.detach()[0].numpy())
    print(f"error of the corners: {losses[0]:.4f} unweighted, {losses[-1]:.4f} with learned weights")

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4))
    left.plot(*want[0].numpy().T, "k--", label="truth")
    left.plot(*seen[0].T, label="unweighted")
    left.plot(*seen[-1].T, label="learned")
    left.scatter(*q[0].numpy().T, c=w[0].detach().numpy(), s=12)
    left.legend(fontsize=8)
    middle.hist([w.detach()[~wrong].numpy(), w.detach()[wrong].numpy()], bins=20, label=["right matches", "wrong ones"])
    middle.set(xlabel="weight")
    middle.legend()
    right.semilogy(losses)
    right.set(xlabel="step", ylabel="error of the corners")
    figure.tight_layout()
    figure.savefig("least_squares_homography.png", dpi=120)
    assert losses[-1] < 0.3 * losses[0]


if __name__ == "__main__":
    main()
