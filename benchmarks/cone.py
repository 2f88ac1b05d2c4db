"""Cone-program layers, the peers and us, in one run on one pinned core; writes RESULTS.md beside this file.

    python -m benchmarks.cone [--only qp,lp] [--batches 1,8,128] [--seconds 3] [--out benchmarks/RESULTS.md]

For every problem and batch size all layers are built and warmed up; then, in rounds and in an order drawn for each round, each does one
forward and one backward call, so that what the machine does meanwhile falls on all of them alike. Reported are medians, in milliseconds
per batch. Gradient errors are those of directional derivatives (3 cotangents x 6 directions) of one instance, relative, against
Richardson differences of solutions that are refined to a relative residual of 1e-12; below each table stand the differences' own error
estimate, and how far those solutions are from Clarabel's at 1e-10.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import os
import platform
import time
import warnings

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import cvxpy as cp
import numpy as np
import torch

import layercompiler as lc
from benchmarks import results as results_file
from benchmarks.backward import FLOOR, backward_page, way_of
from benchmarks.peers import CLARABEL, DEFAULT, LANES, OURS, PEERS, Floor
from benchmarks.problems import BUILDERS, SEVEN
from layercompiler import kernels
from layercompiler.kernels.conic import COUNTS, PARTS
from layercompiler.kernels.express import SPENT
from layercompiler.plan.evaluation import Bound
from tests.differences import directional, flat

SKIP = {("sdp_30", "cvxpylayers (Clarabel)"), ("sdp_30", DEFAULT)}
ONLY = {"cvxpylayers (SCS 1e-8)": {"sdp", "sdp_30"}, "sdp_30": (1, 8)}
TARGETS = dict.fromkeys(("qp", "lp", "portfolio_qp", "logistic", "sparsemax"), 2.5) | dict.fromkeys(("portfolio_socp", "sdp"), 1.5)
FORWARD = {"sdp": 1.5, "sdp_30": 1.5}  # asked over Clarabel through our layer, forward at the largest batch; 4 elsewhere


def clock(function, *arguments):
    began = time.perf_counter()
    result = function(*arguments)
    return result, 1e3 * (time.perf_counter() - began)


def measure(layers, case, batch, seconds, rng):
    """Median forward and backward milliseconds of each layer, and of our kernels by their own clock; none for a layer that fails."""
    arrays = case.sample(batch, rng)
    found, state, inner = {}, {}, {}
    for name, layer in layers.items():
        try:
            tensors = layer.prepare(arrays)
            shapes = [(batch, *v.shape) for v in case.variables]
            cotangents = [torch.tensor(np.random.default_rng(1).standard_normal(s)) for s in shapes]
            outputs = layer.forward(tensors)
            layer.backward(outputs, tensors, cotangents)
            state[name], found[name] = (tensors, cotangents, way_of(layer)), []
        except Exception as error:
            print(f"    {name}: {type(error).__name__}: {str(error)[:100]}")
    began, rounds = time.perf_counter(), 0
    spent, order = dict.fromkeys(state, 0.0), np.random.default_rng(0)
    gc.collect()
    gc.disable()
    while rounds < 2 or time.perf_counter() - began < seconds * len(state):
        for name in order.permutation(list(state)).tolist():  # who finds the caches cold is drawn anew
            tensors, cotangents, way = state[name]
            if rounds >= 2 and spent[name] > 1e3 * seconds:
                continue
            if way is not None:
                way.profile = np.zeros(len(SPENT))
            outputs, forward = clock(layers[name].forward, tensors)
            _, backward = clock(layers[name].backward, outputs, tensors, cotangents)
            if way is not None:
                inner.setdefault(name, []).append((1e3 * way.profile[:-1].sum(), 1e3 * way.profile[-1]))
            found[name].append((forward, backward))
            spent[name] += forward + backward
        rounds += 1
        if rounds % 8 == 0:
            gc.collect()  # outside of every clock
        if all(s > 1e3 * seconds for s in spent.values()):
            break
    gc.enable()
    return tuple({name: tuple(np.median(t, axis=0)) for name, t in times.items()} for times in (found, inner))


def accuracy(layers, case):
    """Relative errors of solution and gradient of one instance, and how good the reference is."""
    rng = np.random.default_rng(3)
    theta = case.sample(1, rng)
    compiled = lc.compile(case.problem, parameters=case.parameters, variables=case.variables)

    def symmetric(a):
        return (a + a.swapaxes(-1, -2)) / 2 if case.name.startswith("sdp") and a.ndim == 3 else a

    directions = [[symmetric(rng.standard_normal(t.shape) * np.sqrt(np.mean(t * t))) for t in theta] for _ in range(6)]
    x = compiled.evaluate(theta).outputs
    cotangents = [[rng.standard_normal(o.shape) for o in x] for _ in range(3)]
    weights = np.array([np.concatenate([w.ravel() for w in ws]) for ws in cotangents])
    single = [t[0] for t in theta]
    slopes = [directional(lambda a: flat(compiled.evaluate(a).outputs) @ weights.T, single, [d[0] for d in ds]) for ds in directions]
    G, error = np.array([s for s, _ in slopes]).T, np.array([e for _, e in slopes]).T
    size = np.linalg.norm(G)
    for parameter, value in zip(case.parameters, single, strict=True):
        parameter.value = value
    case.problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    apart = _relative([v.value for v in case.variables], [o[0] for o in x])
    found = {}
    for name, layer in layers.items():
        try:
            tensors = layer.prepare(theta)
            outputs = layer.forward(tensors)
            off = _relative(layer.values(outputs), x)
            rows = [layer.slopes(layer.backward(outputs, tensors, [torch.tensor(w) for w in ws]), tensors, directions) for ws in cotangents]
            found[name] = off, float(np.linalg.norm(np.array(rows) - G) / size)
        except Exception as error_:
            print(f"    {name}: {type(error_).__name__}: {str(error_)[:100]}")
    return found, float(np.linalg.norm(error) / size), apart


def _relative(got, expected):
    off = sum(float(np.sum((a - b) ** 2)) for a, b in zip(got, expected, strict=True))
    return float(np.sqrt(off / sum(float(np.sum(b * b)) for b in expected)))


def run(name, batches, seconds):
    case = BUILDERS[name]()
    wanted = {k: b for k, b in PEERS.items() if (name, k) not in SKIP and name in ONLY.get(k, {name})}
    layers, built = {}, {}
    for k, build in wanted.items():
        try:
            build(BUILDERS["sparsemax"](n=3))  # imports and first uses are not what is timed
            layers[k], built[k] = clock(build, BUILDERS[name]())
        except Exception as error:
            print(f"    {k}: {type(error).__name__}: {str(error)[:100]}")
    print(f"{name}: {case.size}", flush=True)
    exact, reference, apart = accuracy(layers, case)
    times, own = {}, {}
    if OURS in layers:
        layers[FLOOR] = Floor(layers[OURS].call)
    for batch in batches:
        if batch in ONLY.get(name, batches):
            times[batch], own[batch] = measure(layers, case, batch, seconds, np.random.default_rng(batch))
            print(f"    batch {batch}: " + ", ".join(f"{k} {f:.2f}/{b:.2f}" for k, (f, b) in times[batch].items()), flush=True)
    found = {batch: parts(name, batch, seconds / 3) for batch in times}
    inner = {batch: inside(name, batch) for batch in times}
    exactness = residuals(name, max(times))
    first = next(iter(found.values()))
    print(f"    overhead at batch {min(found)}: {first[2:].sum():.2f} of {first.sum():.2f} ms", flush=True)
    return {
        "case": case,
        "built": built,
        "exact": exact,
        "reference": reference,
        "apart": apart,
        "times": times,
        "own": own,
        "parts": found,
        "inside": inner,
        "residuals": exactness,
    }


class Watch:
    """Adds up the time that a forward call of ours spends in its parts; calls within calls count once."""

    def __init__(self, engines):
        self.spent, self.inside = {}, False
        engine = [(kernels.Conic, "solve"), *((e, "solve") for e in engines)]
        engine += [(kernels.DenseQP, "solve")]
        linear = [(kernels.LDL, "factor"), (kernels.Factor, "solve"), (kernels.Newton, "refine"), (kernels.Linearization, "solve")]
        self.parts = {"engine": engine, "refinement and factorisation": linear, "data": [(Bound, "of")]}

    def _watched(self, label, function):
        def call(*arguments, **named):
            if self.inside:
                return function(*arguments, **named)
            self.inside, began = True, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.spent[label] = self.spent.get(label, 0.0) + 1e3 * (time.perf_counter() - began)
                self.inside = False

        return call

    def __enter__(self):
        self.kept = [(k, m, k.__dict__[m], label) for label, found in self.parts.items() for k, m in found if m in k.__dict__]
        for kind, method, function, label in self.kept:
            bare = isinstance(function, classmethod)
            watched = self._watched(label, function.__func__ if bare else function)
            setattr(kind, method, classmethod(watched) if bare else watched)
        return self

    def __exit__(self, *_):
        for kind, method, function, _label in self.kept:
            setattr(kind, method, function)


def parts(name, batch, seconds):
    """Where a forward call of ours spends its milliseconds, medians: (engine, refinement and factorisation, data, the rest)."""
    case = BUILDERS[name]()
    layer = PEERS[OURS](case)
    tensors = layer.prepare(case.sample(batch, np.random.default_rng(batch)))
    for _ in range(3):
        layer.forward(tensors)
    rows, began = [], time.perf_counter()
    way = getattr(layer.call._bound.quick, "way", None)
    with Watch({type(engine) for engine, _ in layer.call.compiled.search.attempts}) as watch:
        while time.perf_counter() - began < seconds or len(rows) < 3:
            watch.spent = {}
            if way is not None:  # one call of the kernels, which tell by themselves where the time went
                way.profile = np.zeros(len(SPENT))
            _, whole = clock(layer.forward, tensors)
            if way is not None:
                watch.spent = {label: watch.spent.get(label, 0.0) + 1e3 * s for label, s in zip(SPENT, way.profile, strict=True)}
            found = [watch.spent.get(label, 0.0) for label in watch.parts]
            rows.append([*found, whole - sum(found)])
    return np.median(rows, axis=0)


def inside(name, batch):
    """(shares of the engine's time by `PARTS`, its GFLOP/s, those of multiply-adds alone), or None where the engine is not the lanes'."""
    case = BUILDERS[name]()
    compiled = lc.compile(case.problem, parameters=case.parameters, variables=case.variables)
    engine = compiled.search.attempts[0][0]
    conic = getattr(engine, "conic", None)
    if conic is None:
        return dense_rate(compiled, engine.kernel, case, batch) if hasattr(engine, "kernel") else None
    data = Bound.of(compiled, compiled.reader.read(case.sample(batch, np.random.default_rng(batch)), True, raise_nonfinite=True)).scaled
    best = None
    for _ in range(5):
        profile = np.zeros(len(PARTS) + len(COUNTS))
        conic.solve(data.P, data.q, data.A, data.b, tol=1e-7, profile=profile)
        if best is None or profile[: len(PARTS)].sum() < best[: len(PARTS)].sum():
            best = profile
    times = best[: len(PARTS)]
    operations = conic.flops * best[len(PARTS)] + 4 * conic.factor_nnz * best[len(PARTS) + 1]
    return times / times.sum(), operations / times.sum() / 1e9, kernels.peak_rate() / 1e9


def dense_rate(compiled, kernel, case, batch):
    """As `inside`, for the dense kernel, which is one part; its operations are those of `operations`, a model."""
    arrays = case.sample(batch, np.random.default_rng(batch))
    best = np.inf
    with Watch(()) as watch:
        for _ in range(5):
            watch.spent = {}
            compiled.evaluate(arrays)
            best = min(best, watch.spent["engine"])
    return None, kernel.flops * batch / best / 1e6, kernels.peak_rate() / 1e9


def residuals(name, batch):
    """(largest relative residual of a solved instance, instances that are not solved) for the layer with its own choice and on lanes."""
    found = []
    for label in (OURS, LANES):
        case = BUILDERS[name]()
        info = PEERS[label](case).call.solve(*PEERS[label](case).prepare(case.sample(batch, np.random.default_rng(batch)))).info
        found.append((float(info.residual[info.ok].max(initial=0.0)), int((~info.ok).sum())))
    return found


def limit(found, inner, backward, batch):
    """One line on where a row's time goes, and what it makes of the machine."""
    whole = found.sum()
    named = {"refinement and the derivative's factors": found[1], "parameter map, presolve and scaling": found[2]}
    named["checks, recovery and the binding"] = found[3]
    if inner is None or inner[0] is None:
        named["the engine" if inner is None else "the dense kernel"] = found[0]
    else:
        named |= {f"{part} of the engine": share * found[0] for part, share in zip(PARTS, inner[0], strict=True)}
    order = sorted((n for n in named if named[n] >= 0.005 * whole), key=lambda n: -named[n])
    line = f"At batch {batch} our forward call is " + ", ".join(f"{100 * named[n] / whole:.0f} % {n}" for n in order)
    line += f"; backward takes {backward:.2f} of forward."
    if inner is not None and inner[0] is None:
        line += f" The dense kernel makes {inner[1]:.1f} GFLOP/s by its model of operations, {100 * inner[1] / inner[2]:.0f} % of the "
        line += f"{inner[2]:.0f} of multiply-adds alone."
    elif inner is not None:
        line += f" The engine's factorisations and triangular solves: {inner[1]:.1f} GFLOP/s over its whole time, "
        line += f"{100 * inner[1] / inner[2]:.0f} % of the {inner[2]:.0f} of multiply-adds alone."
    return line


# The pages ---------------------------------------------------------------------------------------------------------------


def ratio(results, name, peers, batch):
    """How many times longer the fastest of the peers takes than we do, forward and backward together."""
    times = results[name]["times"].get(batch, {})
    others = [sum(times[p]) for p in peers if p in times]
    return min(others) / sum(times[OURS]) if others and OURS in times else None


def page(results, batches, machine):
    out = ["## Cone programs", "", machine, ""]
    out += [
        "Milliseconds per batch, forward / backward, medians; every layer in one process, on one pinned core, in turns. Errors are",
        "relative (see benchmarks/README.md). moreau is handed canonical data, not parameters: the map from parameters to data, and",
        "back, is outside of its clock.",
        "",
        "### Summary: how many times faster, forward and backward together",
        "",
    ]
    head = ["problem", *(f"over cvxpylayers default, batch {b}" for b in batches)]
    head += [*(f"over the faster moreau, batch {b}" for b in batches), "asked"]
    out += [_row(head), _row(["---"] * len(head))]
    moreaus = [p for p in PEERS if p.startswith("moreau")]
    for name in results:
        base = [DEFAULT] if name != "sdp_30" else ["cvxpylayers (SCS 1e-8)"]
        label = name if name != "sdp_30" else "sdp_30 (over SCS 1e-8)"
        cells = [ratio(results, name, base, b) for b in batches] + [ratio(results, name, moreaus, b) for b in batches]
        asked = f"{TARGETS[name]}" if name in TARGETS else ("1" if name == "sdp_30" else "")
        out.append(_row([label, *("" if c is None else f"{c:.1f}" for c in cells), asked]))
    out += engine_page(results, batches, moreaus)
    out += [
        "",
        f"### Where our forward call at batch {min(batches)} spends its time, in torch",
        "",
        'Milliseconds. "Data" is the map from parameters to data, presolve and scaling; the overhead of the layer is data and the rest.',
        "The layer crosses over to the kernels once; its parts, here and in the lines below, are of the same kernels called one by one.",
        "",
        _row(["problem", "engine", "refinement and factorisation", "data", "the rest", "whole", "overhead"]),
        _row(["---"] * 7),
    ]
    for name, r in results.items():
        found = r["parts"][min(r["parts"])]
        out.append(_row([name, *(f"{t:.2f}" for t in found), f"{found.sum():.2f}", f"{found[2:].sum():.2f}"]))
    for name, r in results.items():
        out += ["", f"### {name}", "", f"{r['case'].size}.", ""]
        for b, found in r["parts"].items():
            forward, backward = r["times"][b].get(OURS, (np.nan, np.nan))
            out += [f"- {limit(found, r['inside'][b], backward / forward, b)}"]
        out += [""]
        sizes = list(r["times"])
        head = ["layer", "build, ms", *(f"batch {b}" for b in sizes), "solution error", "gradient error"]
        out += [_row(head), _row(["---"] * len(head))]
        for k in r["built"]:
            cells = [f"{r['times'][b][k][0]:.2f} / {r['times'][b][k][1]:.2f}" if k in r["times"][b] else "fails" for b in sizes]
            off = [f"{e:.0e}" for e in r["exact"][k]] if k in r["exact"] else ["fails", "fails"]
            off[0] = "reference" if k == OURS else off[0]
            out.append(_row([k, f"{r['built'][k]:.0f}", *cells, *off]))
        known = f"differences' own error estimate {r['reference']:.0e}; solution apart from Clarabel's at 1e-10 by {r['apart']:.0e}"
        out += ["", f"Reference: {known}."]
    return "\n".join(out) + "\n"


def engine_page(results, batches, moreaus):
    """The engine on its own: forward over Clarabel behind the same layer, backward over forward, and how exact solutions are."""
    out = [
        "",
        "### The lanes engine",
        "",
        "Forward over Clarabel is over the same layer with solver='clarabel', as chosen, and in brackets with the engine forced by",
        "solver='lanes'. The last columns are of the largest batch: largest residual of a solved instance, and how many were not solved",
        "(as chosen / as forced).",
        "",
    ]
    head = ["problem", *(f"forward over Clarabel, batch {b}" for b in batches), "asked at the largest"]
    head += [f"forward over the faster moreau, batch {max(batches)}", "largest residual", "not solved"]
    out += [_row(head), _row(["---"] * len(head))]
    for name, r in results.items():
        cells = [name]
        for b in batches:
            t = r["times"].get(b, {})
            over = [t[CLARABEL][0] / t[k][0] for k in (OURS, LANES) if k in t and CLARABEL in t]
            cells.append("" if len(over) < 2 else f"{over[0]:.1f} ({over[1]:.1f})")
        cells.append(f"{FORWARD.get(name, 4)}")
        t = r["times"][max(r["times"])]
        others = [t[k][0] for k in moreaus if k in t]
        cells += [f"{min(others) / t[OURS][0]:.1f} ({min(others) / t[LANES][0]:.1f})" if others else ""]
        cells += [f"{max(k[0] for k in r['residuals']):.0e}", " / ".join(str(k[1]) for k in r["residuals"])]
        out.append(_row(cells))
    return out + backward_page(results, batches)


def _row(cells):
    return "| " + " | ".join(cells) + " |"


def describe_machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    packages = ("layercompiler", "cvxpylayers", "cvxpy", "diffcp", "scs", "clarabel", "moreau", "torch", "numpy", "scipy")
    versions = []
    for p in packages:
        try:
            versions.append(f"{p} {importlib.metadata.version(p)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{p} {lc.__version__}" if p == "layercompiler" else f"{p} missing")
    lanes = kernels.instruction_set() if kernels.available() else "not built"
    return f"{datetime.date.today()}; {model}, one core; Python {platform.python_version()}; {', '.join(versions)}; kernels {lanes}."


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(BUILDERS))
    parser.add_argument("--batches", default="1,8,128")
    parser.add_argument("--seconds", type=float, default=3.0, help="clock time for each layer, problem and batch size")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--out", default=str(results_file.PATH))
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    batches = [int(b) for b in options.batches.split(",")]
    results = {}
    for name in options.only.split(","):
        results[name] = run(name, batches, options.seconds)
    results_file.write("cone", page(results, batches, describe_machine()), options.out)
    print(f"written to {options.out}")
    for name in SEVEN:
        if name in results:
            reached = [ratio(results, name, [DEFAULT], b) for b in batches]
            print(f"{name:16s} " + "  ".join("" if c is None else f"{c:6.1f}x" for c in reached) + f"   asked {TARGETS[name]}x")


if __name__ == "__main__":
    main()
