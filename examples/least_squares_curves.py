"""Fitting decays to samples with outliers: a robust loss whose radius is learned through the fits.

Thirty-two curves y = a exp(-b t) + c are fitted at once by Huber's loss. Where it starts to forgive is learned by gradient descent on
the error of the fitted curves, through the exact derivative of the fits. Takes a few seconds and writes least_squares_curves.png.
"""

import matplotlib
import numpy as np
import torch

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BATCH, SAMPLES, STEPS = 32, 40, 12
T = torch.linspace(0, 4, SAMPLES, dtype=torch.float64)


def decay(x):
    """Curves (..., samples) of parameters (..., 3)."""
    return x[..., :1] * torch.exp(-x[..., 1:2] * T) + x[..., 2:]


def data(rng):
    """True parameters, and samples of which one in eight is far off."""
    truth = torch.tensor(rng.uniform((1.5, 0.5, -0.3), (3.0, 1.5, 0.3), (BATCH, 3)))
    noise = 0.05 * rng.standard_normal((BATCH, SAMPLES)) + (rng.random((BATCH, SAMPLES)) < 0.125) * rng.uniform(0.5, 2.0, (BATCH, SAMPLES))
    return truth, decay(truth) + torch.tensor(noise)


def sample(x, t, y):
    """The residual of one sample."""
    return x[0] * torch.exp(-x[1] * t) + x[2] - y


def main():
    """Learn the radius, draw."""
    truth, y = data(np.random.default_rng(0))
    every = np.zeros(SAMPLES, int)  # each sample is a factor that reads row 0 of the unknown
    problem = lc.LeastSquares(
        variables={"x": lc.Euclidean(1, 3, init=[[2.0, 1.0, 0.0]])},
        factors=[lc.factor(sample, on="x", index=every, data=(T.numpy(), "y"), robust=lc.Huber("radius"))],
        parameters={"y": (SAMPLES,), "radius": ()},
    )
    layer = lc.export(problem, "torch")
    log_radius = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_radius], lr=0.5)
    errors, radii, fits = [], [], []
    for _ in range(STEPS):
        x = layer(y, log_radius.exp())[0][:, 0]
        loss = (decay(x) - decay(truth)).square().mean().sqrt()
        optimizer.zero_grad()
        loss.backward()
        errors.append(loss.item())
        radii.append(log_radius.exp().item())
        fits.append(decay(x).detach())
        optimizer.step()
    print(f"error of the fits: {errors[0]:.3f} at radius {radii[0]:.2f}, {min(errors):.3f} at radius {radii[int(np.argmin(errors))]:.2f}")

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot(T, y[0], "k.", label="samples")
    left.plot(T, decay(truth)[0], "k--", label="truth")
    left.plot(T, fits[0][0], label=f"radius {radii[0]:.2f}")
    left.plot(T, fits[-1][0], label=f"radius {radii[-1]:.2f}, learned")
    left.legend()
    right.plot(radii, errors, ".-")
    right.set(xscale="log", xlabel="radius of the loss", ylabel="error of the fits")
    figure.tight_layout()
    figure.savefig("least_squares_curves.png", dpi=120)
    assert errors[-1] < 0.5 * errors[0]


if __name__ == "__main__":
    main()
