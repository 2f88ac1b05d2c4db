"""The discrete layers beside their peers, one pinned core, one run; writes a section of RESULTS.md.

    python -m benchmarks.discrete [maps] [grid] [overhead] [spo] [regret_path] [regret_knapsack] [regret_tour] [cosine]

Parts that are not named keep what RESULTS.md says of them; the whole takes a quarter of an hour.

Peers that are not installed are left out (pip install pyepo pyscipopt gurobipy; never ortools, which breaks HiGHS in the same
process). torch-imle is not on PyPI: point TORCH_IMLE at a checkout (also its `solvers`), or the grid row compares with the same
formula over a plain Dijkstra loop.
"""

import heapq
import importlib.util
import os
import platform
import sys
import time
import types
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch

import layercompiler as lc
from benchmarks import results as results_file
from benchmarks.discrete_problems import PROBLEMS, costs
from benchmarks.discrete_regret import regret_knapsack, regret_path, regret_tour, task


def installed(name):
    return importlib.util.find_spec(name) is not None


def timed(call, repeats=3):
    """Best seconds of a few calls, after one to warm up, and the last result."""
    result, best = call(), np.inf
    for _ in range(repeats):
        began = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - began)
    return best, result


# -------------------------------------------------------------------------------------------------------------------------- maps


def scip(program, values):
    """SCIP on a kept model, one cost after another."""
    from pyscipopt import Model, quicksum

    m = Model()
    m.hideOutput()
    x = _variables(program, lambda low, high, whole: m.addVar(lb=low, ub=high, vtype="I" if whole else "C"), None, None)
    _rows(program, lambda terms, low, high: m.addCons(low <= (quicksum(a * x[j] for j, a in terms) <= high)))
    out = []
    for c in values:
        m.freeTransform()
        m.setObjective(quicksum(float(a) * v for a, v in zip(c, x, strict=True)), "minimize")
        m.optimize()
        out.append(m.getObjVal())
    return out


def gurobi(program, values):
    """Gurobi on a kept model (its bundled licence is limited in size)."""
    import gurobipy as gp

    env = gp.Env(params={"OutputFlag": 0, "Threads": 1, "MIPGap": 0.0})
    m = gp.Model(env=env)
    x = _variables(program, lambda low, high, whole: m.addVar(lb=low, ub=high, vtype="I" if whole else "C"), -1e20, 1e20)
    _rows(program, lambda terms, low, high: _range(m, gp.quicksum(a * x[j] for j, a in terms), low, high))
    m.update()
    out = []
    for c in values:
        m.setAttr("Obj", x, c.tolist())
        m.optimize()
        out.append(m.ObjVal)
    return out


def _range(m, expression, low, high):
    if low == high:
        m.addConstr(expression == low)
        return
    if high < 1e19:
        m.addConstr(expression <= high)
    if low > -1e19:
        m.addConstr(expression >= low)


def _variables(program, add, below, above):
    bounds = zip(program.lower, program.upper, program.integer, strict=True)
    return [add(float(a) if np.isfinite(a) else below, float(b) if np.isfinite(b) else above, bool(w)) for a, b, w in bounds]


def _rows(program, add):
    A = sp.csr_array(program.A)
    for i in range(program.m):
        part = slice(A.indptr[i], A.indptr[i + 1])
        low, high = max(float(program.low[i]), -1e20), min(float(program.high[i]), 1e20)
        add([(int(j), float(a)) for j, a in zip(A.indices[part], A.data[part], strict=True)], low, high)


def maps():
    rows = [
        "| problem (320 calls) | named oracle | compiled simplex | HiGHS, LP first | whole at the root | cvxpy.solve "
        "| its ratio to oracle/simplex/HiGHS | SCIP | Gurobi | largest gap |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (make, _) in PROBLEMS.items():
        problem, c, x = make()
        values = costs(name, c.size)
        theta = values.reshape(-1, *c.shape)
        auto = lc.compile(problem, parameters=[c], variables=[x], estimator=lc.DBB())
        milp = lc.compile(problem, parameters=[c], variables=[x], estimator=lc.DBB(), solver="highs")
        t_auto, found = timed(lambda k=auto, a=theta: k.solve(a))
        t_milp, exact = timed(lambda k=milp, a=theta: k.solve(a), 1)
        small = lc.compile(problem, parameters=[c], variables=[x], estimator=lc.DBB(), solver="simplex")
        t_small, ours = timed(lambda k=small, a=theta: k.solve(a))
        program = milp.problem.fixed
        bound = milp.space.bind([theta], True)
        nodes = milp.space.engine.solve(-bound.scores, milp.options).nodes
        few = 20 if name.startswith(("tour", "knap")) else 40
        began = time.perf_counter()
        peer = []
        for value in theta[:few]:
            c.value = value
            problem.solve(solver=cp.HIGHS, mip_rel_gap=0.0)
            peer.append(problem.value)
        t_cvxpy = (time.perf_counter() - began) / few
        gaps = [np.abs(found.value[:few] - peer).max(), *(np.abs(k.value - found.value).max() for k in (exact, ours))]
        others = []
        sign = -1.0 if isinstance(problem.objective, cp.Maximize) else 1.0
        for package, solve in (("pyscipopt", scip), ("gurobipy", gurobi)):
            if not installed(package):
                others.append("-")
                continue
            try:
                began = time.perf_counter()
                value = solve(program, -bound.scores[:few])
                others.append(f"{(time.perf_counter() - began) / few * 1e6:.0f}")
                gaps.append(np.abs(sign * np.array(value) - found.value[:few]).max())
            except Exception as error:
                others.append(type(error).__name__)
        named = f"{t_auto / 320 * 1e6:.1f}" if auto.space.match else "-"
        ratio = "/".join(f"{t_cvxpy / (t / 320):.0f}x" for t in ((t_auto,) if auto.space.match else ()) + (t_small, t_milp))
        rows.append(
            f"| {name} | {named} | {t_small / 320 * 1e6:.1f} | {t_milp / 320 * 1e6:.0f} | {100 * (nodes == 0).mean():.0f} % "
            f"| {t_cvxpy * 1e6:.0f} | {ratio} | {others[0]} | {others[1]} | {max(gaps):.0e} |"
        )
        print(rows[-1], flush=True)
    return ["### Solves (MAP calls), microseconds per call", "", *rows]


# -------------------------------------------------------------------------------------------------------------------------- grid


def dijkstra(weights):
    """A plain Dijkstra over the 8-neighbourhood, as torch-imle's example solver does it in Python."""
    n, m = weights.shape
    distance, before = {(0, 0): weights[0, 0]}, {}
    heap, done = [(weights[0, 0], (0, 0))], set()
    while heap:
        d, node = heapq.heappop(heap)
        if node in done:
            continue
        done.add(node)
        if node == (n - 1, m - 1):
            break
        i, j = node
        for a in (-1, 0, 1):
            for b in (-1, 0, 1):
                k = (i + a, j + b)
                if 0 <= k[0] < n and 0 <= k[1] < m and k not in done and d + weights[k] < distance.get(k, np.inf):
                    distance[k], before[k] = d + weights[k], node
                    heapq.heappush(heap, (distance[k], k))
    path = np.zeros((n, m), dtype=np.float32)
    node = (n - 1, m - 1)
    while node != (0, 0):
        path[node] = 1
        node = before[node]
    path[0, 0] = 1
    return path


class GammaLoop:
    """Sum-of-gamma noise drawn by m gammas, as torch-imle draws it."""

    def __init__(self, k, m):
        self.k, self.m = k, m

    def sample(self, shape):
        total = torch.zeros(tuple(shape))
        for i in range(1, self.m + 1):
            total += torch.distributions.Gamma(1.0 / self.k, i / self.k).sample(shape)
        return (total - np.log(self.m)) / self.k


def grid():
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.8, 9.8, (32, 12, 12)).astype(np.float32)
    oracle = lc.oracles.GridPath(12, 12)
    goal = torch.tensor(oracle(rng.uniform(0.8, 9.8, (32, 12, 12))).astype(np.float32))
    k = 12 * 1.3
    where = os.environ.get("TORCH_IMLE")
    if where:
        sys.path.insert(0, where)
        sys.modules.setdefault("ray", types.ModuleType("ray"))  # its solvers import ray, and a loop over one of them does not use it
        from imle.noise import SumOfGammaNoiseDistribution
        from imle.target import TargetDistribution
        from imle.wrapper import imle
        from solvers.dijkstra import get_solver

        solver, noise, label = get_solver("8-grid"), SumOfGammaNoiseDistribution(k, 100), "torch-imle with its own Dijkstra"
    else:
        from layercompiler.torch.imle import TargetDistribution, imle

        label = "torch-imle's formula, gammas drawn one by one, over a plain Dijkstra loop (no checkout given)"
        solver, noise = dijkstra, GammaLoop(k, 100)

    def loop(theta):
        return torch.tensor(np.stack([solver(np.maximum(-u, 1e-6)) for u in theta.detach().numpy()]))

    peer = imle(loop, target_distribution=TargetDistribution(1.0, 10.0), noise_distribution=noise, nb_samples=10)
    estimator = lc.IMLE(samples=10, step=10.0, scaling="torch-imle", difference="forward", output="all", noise=lc.noise.SumOfGamma(k, 100))
    layer = lc.export(oracle, "torch", estimator=estimator)
    default = lc.export(oracle, "torch", estimator=lc.IMLE(samples=10, difference="forward"))

    def step(function, sign):
        t = torch.tensor(sign * weights, requires_grad=True)
        z = function(t).reshape(32, 10, 12, 12)
        (z * (1 - 2 * goal[:, None])).sum().backward()
        return t.grad

    t_peer, _ = timed(lambda: step(peer, -1.0), 1)
    t_ours, _ = timed(lambda: step(lambda t: layer(t)[0], 1.0), 5)
    t_default, _ = timed(lambda: step(lambda t: default(t)[0].unsqueeze(1).expand(-1, 10, -1, -1), 1.0), 5)
    lines = [
        "### One I-MLE step on 12x12 grids (32 instances, 10 samples: 640 solves), milliseconds",
        "",
        "| what | ms | ratio |",
        "|---|---|---|",
        f"| {label} | {t_peer * 1e3:.0f} | 1x |",
        f"| layer, the same estimator (sum-of-gamma, m=100) | {t_ours * 1e3:.1f} | {t_peer / t_ours:.0f}x |",
        f"| layer, forward I-MLE with Gumbel noise | {t_default * 1e3:.1f} | {t_peer / t_default:.0f}x |",
    ]
    print("\n".join(lines[2:]), flush=True)
    return lines


# ---------------------------------------------------------------------------------------------------------------------- overhead


def overhead():
    rows = ["| estimator | ms, forward and backward, for (32, 10, 144) |", "|---|---|"]
    theta = np.random.default_rng(0).standard_normal((32, 144)).astype(np.float32)
    spent = [0.0]
    top = lc.oracles.TopK(144, 10)

    def solver(values):
        began = time.perf_counter()
        found = top.solve(values)
        spent[0] += time.perf_counter() - began
        return found

    estimators = {
        "I-MLE central, Gumbel": lc.IMLE(samples=10),
        "I-MLE forward, sum-of-gamma m=10": lc.IMLE(samples=10, difference="forward", noise=lc.noise.SumOfGamma(10.0)),
        "I-MLE forward, sum-of-gamma m=100": lc.IMLE(samples=10, difference="forward", noise=lc.noise.SumOfGamma(10.0, 100)),
        "adaptive I-MLE": lc.AdaptiveIMLE(samples=10),
        "perturbed, normal": lc.Perturbed(samples=10),
        "identity": lc.Identity(),
    }
    for name, estimator in estimators.items():
        layer = lc.export(lc.BlackBox(solver, sense="max", shape=(144,)), "torch", estimator=estimator)
        best = np.inf
        for _ in range(15):
            t = torch.tensor(theta, requires_grad=True)
            spent[0] = 0.0
            began = time.perf_counter()
            (layer(t)[0] ** 2).sum().backward()
            best = min(best, time.perf_counter() - began - spent[0])
        rows.append(f"| {name} | {best * 1e3:.2f} |")
    draw = lc.noise.SumOfGamma(10.0)
    rng = np.random.default_rng(0)
    ours, _ = timed(lambda: draw.sample(rng, (32, 10, 144)), 10)
    gammas, _ = timed(lambda: [rng.gamma(0.1, 10.0 / i, (32, 10, 144)) for i in range(1, 11)], 3)
    loop, _ = timed(lambda: GammaLoop(10.0, 10).sample(torch.Size((32, 10, 144))), 3)
    rows += [
        "",
        f"Sum-of-gamma noise, m=10: {ours * 1e3:.2f} ms; gammas by numpy {gammas * 1e3:.1f} ms ({gammas / ours:.0f}x), "
        f"by torch {loop * 1e3:.1f} ms ({loop / ours:.0f}x).",
    ]
    print("\n".join(rows), flush=True)
    return ["### Overhead of the estimators, without the solver", "", *rows]


# --------------------------------------------------------------------------------------------------------------------------- spo


def epoch(layer, x, c, z):
    """One epoch of SPO+ on notebook 03."""
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 40)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = lc.losses.SPOPlus()

    def run():
        for rows in torch.randperm(1000).split(32):
            value = layer.loss(loss, model(x[rows]), true=c[rows], solution=z[rows]).mean()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return run


def spo():
    data = task("path")
    oracle = data.problem
    x, c, z = (torch.tensor(a) for a in (data.x, data.c, data.z))
    problem, parameter, variable = PROBLEMS["path 5x5 (LP)"][0]()
    layers = {
        "ours, cp.Problem, recognised oracle": lc.export(
            problem, "torch", parameters=[parameter], variables=[variable], estimator=lc.Identity()
        ),
        "ours, cp.Problem, compiled simplex": lc.export(
            problem, "torch", parameters=[parameter], variables=[variable], estimator=lc.Identity(), solver="simplex"
        ),
        "ours, cp.Problem on HiGHS": lc.export(
            problem, "torch", parameters=[parameter], variables=[variable], estimator=lc.Identity(), solver="highs"
        ),
        "ours, named oracle": lc.export(oracle, "torch", estimator=lc.Identity()),
    }
    times = {name: timed(epoch(layer, x, c, z))[0] for name, layer in layers.items()}
    if installed("pyepo") and installed("gurobipy"):
        try:
            times["PyEPO 2.2.7, Gurobi"] = timed(_pyepo(x.numpy(), c.numpy()))[0]
        except Exception as error:
            print("PyEPO:", error)
    base = times.get("PyEPO 2.2.7, Gurobi")
    rows = ["| SPO+ on notebook 03, one epoch of 1000 | ms | against PyEPO with Gurobi |", "|---|---|---|"]
    rows += [f"| {name} | {t * 1e3:.0f} | {'-' if base is None else f'{base / t:.1f}x'} |" for name, t in times.items()]
    print("\n".join(rows), flush=True)
    return ["### An epoch of SPO+", "", *rows]


def _pyepo(x, c):
    import pyepo
    from torch.utils.data import DataLoader

    optmodel = pyepo.model.grb.shortestPathModel((5, 5))
    data = pyepo.data.dataset.optDataset(optmodel, x, c)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    loss = pyepo.func.SPOPlus(optmodel, processes=1)
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 40)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def run():
        for features, cost, solution, value in loader:
            result = loss(model(features), cost, solution, value)
            optimizer.zero_grad()
            result.backward()
            optimizer.step()

    return run


# ------------------------------------------------------------------------------------------------------------------------ cosine


def cosine():
    from tests.discrete.test_estimators import FLOORS, MADE, PERMUTATIONS, SUBSETS, pairs
    from tests.discrete.test_estimators import cosine as measure

    drawn, short = {}, []
    rows = [
        "| estimator | S = 1 | 10 | 100 | 1000 | linear: 1 | 10 | 100 | 1000 | assignments: 1 | 10 | 100 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    torch.manual_seed(0)
    theta, b = torch.randn(100, 10).double().numpy(), torch.randn(100, 10).double().numpy()  # those the floors were measured with
    repeats = {1: 20, 10: 10, 100: 3, 1000: 1}
    twice = (0.05, 0.035, 0.01)  # two standard errors of a single draw with 1, 10 and 100 samples, as the floors are
    for name in FLOORS:
        found = []
        for linear in (False, True):
            now = [measure(MADE[name](s), SUBSETS, lc.oracles.TopK(10, 5), theta, b, linear, r) for s, r in repeats.items()]
            floors = zip(now, FLOORS[name][linear], twice, strict=False)
            short += [f"{name}, {x:.3f} of {y}" for x, y, error in floors if x < y - error]
            found += now
        places = pairs(60, 16)
        found += [measure(MADE[name](s), PERMUTATIONS, lc.oracles.Assignment(4), *places, False, repeats[s]) for s in (1, 10, 100)]
        rows.append(f"| {name} | " + " | ".join(f"{v:.2f}" for v in found) + " |")
        drawn[name] = found
        print(rows[-1], flush=True)
    below = "; ".join(short) or "none"
    rows += ["", f"Below what single draws of prototypes gave by more than two standard errors ({', '.join(map(str, twice))}): {below}."]
    print(rows[-1], flush=True)
    if installed("matplotlib"):
        _draw(drawn)
    head = "### Mean cosine with the exact gradient of E f(z), f = |z - b|^2 or <b, z> (k-subset 10/5, assignment 4x4)"
    return [head, "", *rows, "", "![cosines against samples](discrete_cosine.png)"]


def _draw(found):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(14, 4), sharey=True)
    for ax in axes:
        ax.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    for name, values in found.items():
        axes[0].semilogx((1, 10, 100, 1000), values[:4], marker="o", label=name)
        axes[1].semilogx((1, 10, 100, 1000), values[4:8], marker="o")
        axes[2].semilogx((1, 10, 100), values[8:], marker="o")
    axes[0].set(title="k-subset, n = 10, k = 5, quadratic f", xlabel="samples", ylabel="mean cosine with the exact gradient")
    axes[1].set(title="k-subset, linear f", xlabel="samples")
    axes[2].set(title="assignment 4x4, quadratic f", xlabel="samples")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(Path(__file__).parent / "discrete_cosine.png", dpi=80)


SECTIONS = {f.__name__: f for f in (maps, grid, overhead, spo, regret_path, regret_knapsack, regret_tour, cosine)}


def main():
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    torch.set_num_threads(1)
    if unknown := [name for name in sys.argv[1:] if name not in SECTIONS]:
        sys.exit(f"no parts {unknown}: {list(SECTIONS)}")
    for name in sys.argv[1:] or SECTIONS:
        _keep(name, "\n".join(SECTIONS[name]()).strip())  # at once: a run that is cut keeps what it has


def _keep(name, text):
    """Replace one part of the section in RESULTS.md."""
    old = results_file.PATH.read_text() if results_file.PATH.exists() else ""
    parts = dict.fromkeys(SECTIONS, "")
    for part in parts:
        _, begin, rest = old.partition(f"<!-- discrete {part} -->")
        parts[part] = rest.partition("<!-- discrete ")[0].strip() if begin else ""
    parts[name] = text
    head = f"One core, {platform.processor() or platform.machine()}, Python {platform.python_version()}, "
    head += f"torch {torch.__version__}, cvxpy {cp.__version__}."
    body = [f"<!-- discrete {part} -->\n{kept}" for part, kept in parts.items() if kept]
    results_file.write("discrete", "\n\n".join(["## Discrete layers", head, *body, "<!-- discrete end of parts -->"]))


if __name__ == "__main__":
    main()
