"""A discrete auto-encoder of handwritten digits: the code is the ten of a hundred bits that score highest.

Encoder and decoder are small networks; between them stands a top-k layer, trained through I-MLE. The data are scikit-learn's 8x8 digits.
As a yardstick, a linear code of as many real numbers (PCA with ten components). Takes half a minute and writes discrete_autoencoder.png.
"""

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BITS, K, EPOCHS = 100, 10, 60


class Coder(torch.nn.Module):
    """Picture to code of K ones among BITS, and back."""

    def __init__(self, estimator):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, BITS))
        self.decoder = torch.nn.Sequential(torch.nn.Linear(BITS, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64), torch.nn.Sigmoid())
        self.layer = lc.export(lc.oracles.TopK(BITS, K), "torch", estimator=estimator)

    def forward(self, x):
        """Reconstructions of each sample: (batch, samples, 64)."""
        return self.decoder(self.layer(self.encoder(x))[0])

    def reconstruct(self, x):
        """Without noise."""
        with torch.no_grad():
            scores = self.encoder(x).numpy()
            return self.decoder(torch.tensor(self.layer.solve(scores).outputs[0], dtype=torch.float32))


def main():
    """Train with three estimators, draw."""
    x = torch.tensor(load_digits().data / 16.0, dtype=torch.float32)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    train, test = x[:1500], x[1500:]
    pca = PCA(K).fit(train.numpy())
    linear = float(((pca.inverse_transform(pca.transform(test.numpy())) - test.numpy()) ** 2).sum(1).mean())
    noise = lc.noise.SumOfGamma(K)
    estimators = {
        "I-MLE": lc.IMLE(samples=2, output="all", noise=noise, temperature=1.0, step=2.0),
        "adaptive I-MLE": lc.AdaptiveIMLE(samples=2, output="all", noise=noise, target=2.0),
        "straight-through": lc.StraightThrough(samples=2, output="all", noise=noise),
    }
    curves, shown = {}, None
    for name, estimator in estimators.items():
        torch.manual_seed(0)
        coder = Coder(estimator)
        optimizer = torch.optim.Adam(coder.parameters(), lr=1e-3)
        curve = []
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(train)).split(50):
                loss = ((coder(train[rows]) - train[rows, None]) ** 2).sum(-1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            curve.append(float(((coder.reconstruct(test) - test) ** 2).sum(1).mean()))
        curves[name] = curve
        print(f"{name:17s} test error {curve[0]:.2f} -> {curve[-1]:.2f} (PCA with {K} real numbers: {linear:.2f})", flush=True)
        shown = coder.reconstruct(test[:12]) if shown is None else shown
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.4), width_ratios=(2, 1))
    pair = np.concatenate([test[:12].numpy().reshape(12, 8, 8), shown.numpy().reshape(12, 8, 8)], 1)
    left.imshow(np.concatenate(list(np.pad(pair, ((0, 0), (0, 0), (0, 1)))), 1), cmap="gray_r")
    left.set(title=f"digits, and what {K} of {BITS} bits keep of them (I-MLE)", xticks=[], yticks=[])
    for name, curve in curves.items():
        right.plot(curve, label=name)
    right.axhline(linear, color="gray", linestyle=":", label=f"PCA, {K} numbers")
    right.set(title="squared error on test digits", xlabel="epoch")
    right.legend()
    figure.tight_layout()
    figure.savefig("discrete_autoencoder.png", dpi=70)


if __name__ == "__main__":
    main()
