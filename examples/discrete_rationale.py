"""Finds which five of forty words decide a rating: k-subset selection with planted rationales.

Every sample has forty words; its rating depends on the words of one of a few themes only. A selector scores the words, the layer
picks the top five, and a predictor sees nothing else. No one tells which words matter. Takes half a minute and writes
discrete_rationale.png.
"""

import matplotlib
import numpy as np
import torch

import layercompiler as lc

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WORDS, K, VOCABULARY, DIM, STEPS = 40, 5, 60, 8, 1500


def samples(count, rng, values):
    """Words (count, 40), ratings, and the planted rationale: the K words of the sample that carry value."""
    words = rng.integers(20, VOCABULARY, (count, WORDS))  # words 0..19 carry values, the others none
    places = rng.permuted(np.tile(np.arange(WORDS), (count, 1)), axis=1)[:, :K]
    chosen = rng.integers(0, 20, (count, K))
    np.put_along_axis(words, places, chosen, 1)
    rating = values[chosen].sum(1) + 0.1 * rng.standard_normal(count)
    mask = np.zeros((count, WORDS))
    np.put_along_axis(mask, places, 1.0, 1)
    return torch.tensor(words), torch.tensor(rating, dtype=torch.float32), torch.tensor(mask, dtype=torch.float32)


class Reader(torch.nn.Module):
    """Selector, top-k layer, predictor."""

    def __init__(self, estimator):
        super().__init__()
        self.scores, self.values = torch.nn.Embedding(VOCABULARY, 1), torch.nn.Embedding(VOCABULARY, DIM)
        torch.nn.init.zeros_(self.scores.weight)
        self.head = torch.nn.Sequential(torch.nn.Linear(DIM, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
        self.layer = lc.export(lc.oracles.TopK(WORDS, K), "torch", estimator=estimator)

    def forward(self, words):
        """Predicted rating and selected words."""
        (z,) = self.layer(self.scores(words).squeeze(-1))
        return self.head((z.unsqueeze(-1) * self.values(words)).sum(1)).squeeze(-1), z

    def choice(self, words):
        """The selection without noise."""
        return torch.tensor(self.layer.solve(self.scores(words).squeeze(-1).detach().numpy()).outputs[0])


def main():
    """Train, tell the precision of the rationales, draw."""
    rng = np.random.default_rng(0)
    values = rng.choice([-1.0, 1.0], 20) * rng.uniform(0.5, 1.5, 20)
    test, rating, mask = samples(500, rng, values)
    estimators = {
        "I-MLE": lc.IMLE(samples=5, step=1.0, noise=lc.noise.SumOfGamma(K)),
        "perturbed": lc.Perturbed(samples=5),
        "straight-through": lc.StraightThrough(samples=1),
        "identity": lc.Identity(),
    }
    curves, model = {}, None
    for name, estimator in estimators.items():
        torch.manual_seed(0)
        reader = Reader(estimator)
        optimizer = torch.optim.Adam(reader.parameters(), lr=1e-2)
        noise = np.random.default_rng(1)
        curve = []
        for step in range(STEPS + 1):
            if step % 100 == 0:
                curve.append(100 * float((reader.choice(test) * mask).sum() / mask.sum()))
            words, y, _ = samples(64, noise, values)
            predicted, _ = reader(words)
            loss = ((predicted - y) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        error = float(((reader(test)[0].detach() - rating) ** 2).mean() / rating.var())
        curves[name] = curve
        print(
            f"{name:17s} rationale precision {curve[0]:.0f} -> {curve[-1]:.1f} % (chance 12.5 %), test error {error:.3f} of the variance",
            flush=True,
        )
        model = model or reader
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
    for name, curve in curves.items():
        axes[0].plot(np.arange(0, STEPS + 1, 100), curve, label=name)
    axes[0].set(title="precision of the rationales, %", xlabel="step")
    axes[0].legend()
    axes[1].bar(np.arange(VOCABULARY), model.scores.weight.detach().numpy()[:, 0], color=["tab:red"] * 20 + ["tab:gray"] * 40)
    axes[1].set(title="learned scores of words (red: those that carry value), I-MLE", xlabel="word")
    figure.tight_layout()
    figure.savefig("discrete_rationale.png", dpi=70)


if __name__ == "__main__":
    main()
