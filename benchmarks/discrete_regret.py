"""Test regret on PyEPO's generators: shortest paths (its notebook 03), knapsacks and tours; a part of benchmarks/discrete.py.

One protocol for all: a linear model from 5 features, 1000 instances to train and 1000 to test, Adam, batches of 32, 20 epochs. Nothing
is chosen on the test set: "chosen by validation" takes loss, rate and schedule from `CANDIDATES` by the regret on held-out parts of the
training set.
"""

import importlib.util
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import layercompiler as lc
from benchmarks.discrete_problems import knapsack_data, path_data, tour_data, tour_dfj
from tests.discrete.problems import knapsack

SEEDS = (42, 0, 1, 2, 3)
L = lc.losses
NOTEBOOK = {  # test regret in %, seconds: what notebook 03 stores
    "SPO+": (7.59, 165), "PG": (14.16, 223), "DPO": (9.88, 306), "DPO, multiplicative": (12.24, 297), "PFY": (7.29, 297),
    "PFY, multiplicative": (7.54, 293), "I-MLE": (12.07, 609), "AI-MLE": (7.24, 614), "RFWO": (7.40, 3363), "RFY": (7.79, 3347),
    "DBB": (15.12, 298), "NID": (8.90, 156), "NCE": (10.29, 19), "CMAP": (12.97, 21), "lsLTR": (9.59, 16), "prLTR": (9.73, 17),
    "ptLTR": (8.47, 17),
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A problem with data: `problem` and its settings go to `lc.export`; x, c and the solutions z of both splits."""

    name: str
    problem: Any
    settings: dict
    sign: float
    x: np.ndarray
    c: np.ndarray
    z: np.ndarray
    xe: np.ndarray
    ce: np.ndarray
    ze: np.ndarray
    solver: Any

    def layer(self, estimator):
        return lc.export(self.problem, "torch", estimator=estimator, **self.settings)

    def regret(self, model, x, c, z):
        """Regret in % of the optimal objective."""
        with torch.no_grad():
            found = self.solver.solve(model(torch.tensor(x)).double().numpy()).outputs[0]
        return 100 * self.sign * ((c * found).sum() - (c * z).sum()) / np.abs((c * z).sum())


def task(name):
    """A task by name; the split is that of scikit-learn's train_test_split(test_size=1000, random_state=42)."""
    if name == "path":
        (x, c), problem, settings, sign = path_data(), lc.oracles.DagPath.grid(5, 5), {}, 1.0
    elif name == "knapsack":
        weights, x, c = knapsack_data()
        problem, parameter, variable = knapsack(32, 2, 20.0, weights=weights)
        settings, sign = {"parameters": [parameter], "variables": [variable]}, -1.0
    else:
        (x, c), (problem, parameter, variable) = tour_data(), tour_dfj(10)
        settings, sign = {"parameters": [parameter], "variables": [variable]}, 1.0
    order = np.random.RandomState(42).permutation(2000)
    test, train = order[:1000], order[1000:]
    solver = lc.compile(problem, estimator=lc.Identity(), **settings)
    z = solver.solve(c.astype(float)).outputs[0].astype(np.float32)
    return Task(name, problem, settings, sign, x[train], c[train], z[train], x[test], c[test], z[test], solver)


def fit(task, estimator, loss, rows, seed, schedule="constant", epochs=20, rate=1e-2):
    """A trained linear model.

    Args:
        rows: Which of the training instances.
        schedule: "constant" steps, "cosine" decay to zero, or "averaged": constant, and the mean of the weights over the second half.
    """
    torch.manual_seed(seed)
    x, c, z = (torch.tensor(a[rows]) for a in (task.x, task.c, task.z))
    layer, pool = task.layer(estimator() if callable(estimator) else estimator), torch.unique(z, dim=0)
    model = torch.nn.Linear(x.shape[1], c.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    steps = epochs * -(-len(x) // 32)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if schedule == "cosine" else None
    mean, count = [torch.zeros_like(p) for p in model.parameters()], 0
    for epoch in range(epochs):
        for some in torch.randperm(len(x)).split(32):
            value = loss(layer, model(x[some]), {"true": c[some], "solution": z[some], "pool": pool}, task.sign)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if decay:
                decay.step()
            if schedule == "averaged" and 2 * epoch >= epochs:
                count += 1
                for m, p in zip(mean, model.parameters(), strict=True):
                    m += (p.detach() - m) / count
    if count:
        with torch.no_grad():
            for m, p in zip(mean, model.parameters(), strict=True):
                p.copy_(m)
    return model


def through(loss, *needs):
    """A loss of `layercompiler.losses`, averaged."""
    return lambda layer, p, targets, sign: layer.loss(loss, p, **{k: targets[k] for k in needs}).mean()


def distance(layer, p, targets, sign):
    """L1 distance of the layer's solutions from the best ones."""
    return (layer(p)[0] - targets["solution"]).abs().mean()


def cost(layer, p, targets, sign):
    """What the layer's solutions cost in truth."""
    return sign * (layer(p)[0] * targets["true"]).sum(1).mean()


def squares(layer, p, targets, sign):
    """Squared error of the predicted costs; no layer at all."""
    return ((p - targets["true"]) ** 2).mean()


def young(temperature, noise=None, samples=3):
    return through(L.PerturbedFenchelYoung(samples, temperature, noise or lc.noise.Normal()), "solution")


SPO = through(L.SPOPlus(), "true", "solution")
METHODS = {
    "squared error of the costs (two-stage)": (lc.Identity(), squares),
    "SPO+": (lc.Identity(), SPO),
    "perturbed Fenchel-Young (3 samples, normal)": (lc.Identity(), young(1.0)),
    "perturbed Fenchel-Young (3 samples, Gumbel)": (lc.Identity(), young(1.0, lc.noise.Gumbel())),
    "Fenchel-Young, squared norm": (lc.Identity(), through(L.FenchelYoung(), "solution")),
    "NCE": (lc.Identity(), through(L.NCE(), "solution", "pool")),
    "MAP-contrastive": (lc.Identity(), through(L.MAPContrastive(), "solution", "pool")),
    "I-MLE central (3 samples) + L1": (lc.IMLE(samples=3), distance),
    "I-MLE central (3 samples) + cost": (lc.IMLE(samples=3), cost),
    "adaptive I-MLE (3 samples) + L1": (lambda: lc.AdaptiveIMLE(samples=3, target=4.0), distance),
    "perturbed (10 samples) + cost": (lc.Perturbed(samples=10), cost),
    "identity + cost": (lc.Identity(), cost),
    "DBB + cost": (lc.DBB(step=1.0), cost),
}
FEW = (
    "squared error of the costs (two-stage)",
    "SPO+",
    "perturbed Fenchel-Young (3 samples, normal)",
    "NCE",
    "I-MLE central (3 samples) + cost",
    "perturbed (10 samples) + cost",
    "identity + cost",
)
_LOSSES = {
    "SPO+": SPO,
    **{f"perturbed Fenchel-Young, normal, T={t}, {n} samples": young(t, samples=n) for t, n in ((0.5, 3), (0.5, 10), (1.0, 10))},
}
CANDIDATES = {
    f"{name}, rate {rate}, {schedule}": (loss, schedule, rate)
    for name, loss in _LOSSES.items()
    for rate in (1e-2, 3e-2)
    for schedule in ("cosine", "averaged")
}


def choose(task, splits=6):
    """The candidate of least mean regret on held-out fifths of the training set, and the regrets of all."""
    found = {}
    for name, (loss, schedule, rate) in CANDIDATES.items():
        scores = []
        for k in range(splits):
            order = np.random.RandomState(k).permutation(len(task.x))
            held, rows = order[:200], order[200:]
            model = fit(task, lc.Identity(), loss, rows, k, schedule, rate=rate)
            scores.append(task.regret(model, task.x[held], task.c[held], task.z[held]))
        found[name] = float(np.mean(scores))
    return min(found, key=found.get), found


def measure(task, estimator, loss, seeds, schedule="constant", rate=1e-2):
    """Test regrets, and mean seconds of training."""
    found, spent = [], []
    for seed in seeds:
        began = time.perf_counter()
        model = fit(task, estimator, loss, slice(None), seed, schedule, rate=rate)
        spent.append(time.perf_counter() - began)
        found.append(task.regret(model, task.xe, task.ce, task.ze))
    return found, float(np.mean(spent))


def table(name, methods=METHODS, seeds=SEEDS, selection=False):
    """Rows of Markdown."""
    made = task(name)
    rows = [
        f"| method | test regret, seed {seeds[0]} | mean of {len(seeds)} seeds | worst | seconds for 20 epochs |",
        "|---|---|---|---|---|",
    ]

    def add(label, found, spent):
        rows.append(f"| {label} | {found[0]:.2f} % | {np.mean(found):.2f} % | {max(found):.2f} % | {spent:.1f} |")
        print(rows[-1], flush=True)

    for label in methods:
        add(label, *measure(made, *METHODS[label], seeds))
    if selection:
        best, scores = choose(made)
        loss, schedule, rate = CANDIDATES[best]
        add(f"chosen by validation: {best}", *measure(made, lc.Identity(), loss, seeds, schedule, rate))
        rows += ["", "Regret on held-out parts of the training set: " + ", ".join(f"{k} {v:.2f} %" for k, v in scores.items()) + "."]
    if importlib.util.find_spec("pyepo") and importlib.util.find_spec("gurobipy"):
        try:
            found, spent = peer(made, seeds[0])
            rows.insert(2 + len(methods), f"| PyEPO with Gurobi, SPO+ | {found:.2f} % | - | - | {spent:.1f} |")
            print(rows[2 + len(methods)], flush=True)
        except Exception as error:
            print("PyEPO:", type(error).__name__, error)
    return rows


def peer(task, seed):
    """Test regret and seconds of PyEPO's SPO+ on the same data and protocol."""
    import pyepo
    from torch.utils.data import DataLoader

    model_of = pyepo.model.grb
    if task.name == "path":
        model = model_of.shortestPathModel((5, 5))
    elif task.name == "knapsack":
        model = model_of.knapsackModel(knapsack_data()[0], [20.0, 20.0])
    else:
        model = model_of.tspDFJModel(10)
    data = pyepo.data.dataset.optDataset(model, task.x, task.c)
    loss = pyepo.func.SPOPlus(model, processes=1)
    torch.manual_seed(seed)
    net = torch.nn.Linear(task.x.shape[1], task.c.shape[1])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    began = time.perf_counter()
    for _ in range(20):
        for x, c, z, value in DataLoader(data, batch_size=32, shuffle=True):
            result = loss(net(x), c, z, value)
            optimizer.zero_grad()
            result.backward()
            optimizer.step()
    return task.regret(net, task.xe, task.ce, task.ze), time.perf_counter() - began


def regret_path():
    """The table of notebook 03."""
    lines = ["### Test regret on PyEPO's notebook 03 (5x5 paths, degree 4, noise 0.5, 20 epochs)", "", *table("path", selection=True), ""]
    return [*lines, *stored()]


def stored():
    """Rows of PyEPO's own table."""
    head = "| PyEPO's notebook 03 as stored: its authors' machine, Gurobi, two processes, seed 42 | test regret | seconds for 20 epochs |"
    return [head, "|---|---|---|", *(f"| {name} | {found:.2f} % | {spent} |" for name, (found, spent) in NOTEBOOK.items())]


def regret_knapsack():
    """The table of knapsacks."""
    head = "### Test regret on PyEPO's knapsacks (32 items, 2 rows of capacity 20, degree 4, noise 0.5, 20 epochs)"
    return [head, "", *table("knapsack", FEW, SEEDS[:3])]


def regret_tour():
    """The table of tours."""
    head = "### Test regret on PyEPO's tours (10 cities, degree 4, noise 0.5, 20 epochs), solved as a program with all subtour rows"
    return [head, "", *table("tour", FEW, SEEDS[:3])]
