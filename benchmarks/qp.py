"""Batches of dense QPs through torch and jax layers, the peers and us, in one run on one pinned core; writes its part of RESULTS.md.

    python -m benchmarks.qp [--kinds std,ill] [--sizes 10,50,100] [--batches 1,16,128,512] [--seconds 0.7] [--out benchmarks/RESULTS.md]

m = n inequalities, n/4 equalities, float64 (one column: float32), every instance its own matrices. Layers take turns, one forward and one
backward call each, so that what the machine does meanwhile falls on all of them alike; reported are the fastest rounds. Gradient errors
are relative, the largest of the six matrices and of four instances, beside the exact active set refined in long double
(tests/qp/families.py).
A peer whose round of the batch before took more than a second is left out of the next larger one.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.util
import os
import time
import warnings

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import numpy as np
import torch

import layercompiler as lc
from benchmarks import results as results_file
from benchmarks.cone import describe_machine
from layercompiler import kernels
from tests.qp import families

KINDS = ("std", "ill", "dqp", "optnet")
OURS, OURS_JAX, SINGLE = "layercompiler, torch", "layercompiler, jax", "torch, float32"
ARRAYS, ARRAYS_JAX = "arrays, torch", "arrays, jax"
PEERS = {"moreau": "moreau", "qpth": "qpth", "QPLayer": "proxsuite", "qpax": "qpax"}  # by name of the module
SLOW = 1e3  # milliseconds of a round


class Torch:
    """A layer of torch tensors: x of (Q, p, G, h, A, b), and gradients by autograd."""

    def prepare(self, arrays):
        return [torch.tensor(a, requires_grad=True) for a in arrays], torch.tensor(_cotangent(arrays))

    def forward(self, tensors):
        return self.call(*tensors)

    def backward(self, x, tensors, w):
        return torch.autograd.grad(x, tensors, w)

    def numpy(self, a):
        return a.detach().numpy()


class Ours(Torch):
    solver, precision = "auto", "double"

    def __init__(self, n, m, p, batch):
        layer = lc.export(lc.QP(n, m, p), "torch", solver=self.solver, options={"workers": 1, "precision": self.precision})
        self.call = lambda *t: layer(*t)[0]


class Single(Ours):
    """Float32 tensors, solved in float32 where that tells the active rows."""

    precision = "single"

    def prepare(self, arrays):
        tensors, w = super().prepare(arrays)
        return [t.detach().float().requires_grad_() for t in tensors], w.float()


class Arrays(Ours):
    solver = "interior_point"


class Qpth(Torch):
    def __init__(self, n, m, p, batch):
        from qpth.qp import QPFunction

        self.call = QPFunction(verbose=-1, eps=1e-12, maxIter=30)


class Moreau(Torch):
    def __init__(self, n, m, p, batch):
        import moreau
        from moreau.torch import Solver

        rows = m + p
        pointers = [torch.arange(k + 1) * n for k in (n, rows)]
        columns = [torch.arange(n).repeat(k) for k in (n, rows)]
        cones = moreau.Cones(num_zero_cones=p, num_nonneg_cones=m, so_cone_dims=[], psd_dims=[], num_exp_cones=0)
        settings = moreau.Settings(solver="auto", device="cpu", batch_size=batch, enable_grad=True)
        solver = Solver(n, rows, pointers[0], columns[0], pointers[1], columns[1], cones=cones, settings=settings)

        def call(Q, c, G, h, A, b):
            k = len(c)
            return solver.solve(Q.reshape(k, -1), torch.cat([A, G], dim=1).reshape(k, -1), c, torch.cat([b, h], dim=1)).x

        self.call = call


class QPLayer(Torch):
    def __init__(self, n, m, p, batch):
        from proxsuite.torch.qplayer import QPFunction

        solve = QPFunction(eps=1e-9, eps_backward=1e-9, rho_backward=1e-9, mu_backward=1e-9)
        below = torch.full((batch, m), -1e20, dtype=torch.float64)
        self.call = lambda Q, c, G, h, A, b: solve(Q, c, A, b, G, below, h)[0]

    def backward(self, x, tensors, w):
        torch.set_default_dtype(torch.float64)  # of its gradients
        try:
            return super().backward(x, tensors, w)
        finally:
            torch.set_default_dtype(torch.float32)


class Jax:
    """Our layer of jax arrays under jit; forward gives x with what its pullback needs."""

    solver = "auto"

    def __init__(self, n, m, p, batch):
        import jax

        jax.config.update("jax_enable_x64", True)
        self.jax = jax
        call = self.layer(n, m, p)

        def both(w, *arrays):
            x, pull = jax.vjp(call, *arrays)
            return x, pull(w)

        self.both = jax.jit(both)

    def layer(self, n, m, p):
        layer = lc.export(lc.QP(n, m, p), "jax", solver=self.solver, options={"workers": 1})
        return lambda *arrays: layer(*arrays)[0]

    def prepare(self, arrays):
        return [self.jax.numpy.asarray(a) for a in arrays], self.jax.numpy.asarray(_cotangent(arrays))

    def forward(self, tensors):
        return None

    def backward(self, x, tensors, w):
        x, gradients = self.jax.block_until_ready(self.both(w, *tensors))
        self.x = x
        return gradients

    def numpy(self, a):
        return np.asarray(a)


class JaxArrays(Jax):
    solver = "interior_point"


class Qpax(Jax):
    """Its default backend gives a wrong gradient by G, and its default `target_kappa` of 1e-3 gradients that are off by per cents."""

    def layer(self, n, m, p):
        import qpax

        def one(Q, c, G, h, A, b):
            return qpax.solve_qp_primal(Q, c, A, b, G, h, backend="i", solver_tol=1e-9, target_kappa=1e-9)

        return self.jax.vmap(one)


LAYERS = {
    OURS: Ours,
    OURS_JAX: Jax,
    SINGLE: Single,
    ARRAYS: Arrays,
    ARRAYS_JAX: JaxArrays,
    "moreau": Moreau,
    "qpth": Qpth,
    "QPLayer": QPLayer,
    "qpax": Qpax,
}


@functools.cache
def compiled(name, n, m, p, batch):
    """A layer of jax: the families share what jit makes of one shape."""
    return LAYERS[name](n, m, p, batch)


def _cotangent(arrays):
    return np.random.default_rng(1).standard_normal(arrays[1].shape)


def clock(function, *arguments):
    began = time.perf_counter()
    result = function(*arguments)
    return result, 1e3 * (time.perf_counter() - began)


def measure(kind, n, batch, seconds, names):
    """Fastest forward and backward milliseconds by layer, and gradient errors."""
    m, p = n, n // 4
    arrays = families.batch(kind, n, m, p, batch)
    state, found, errors = {}, {}, {}
    for name in names:
        try:
            build = LAYERS[name]
            layer = compiled(name, n, m, p, batch) if issubclass(build, Jax) else build(n, m, p, batch)
            tensors, w = layer.prepare(arrays)
            x = layer.forward(tensors)
            gradients = layer.backward(x, tensors, w)
            known = arrays, x if x is not None else layer.x
            if build is Single:  # beside what float64 makes of the rounded numbers
                rounded = [a.astype(np.float32).astype(np.float64) for a in arrays]
                known = rounded, Ours(n, m, p, batch).forward([torch.tensor(a) for a in rounded])
            errors[name] = _error(*known, layer, gradients)
            state[name], found[name] = (layer, tensors, w), []
        except Exception as error:
            print(f"    {name}: {type(error).__name__}: {str(error)[:100]}", flush=True)
    spent = dict.fromkeys(state, 0.0)
    gc.collect()
    gc.disable()
    while any(s < 1e3 * seconds or len(found[name]) < 2 for name, s in spent.items()):
        for name, (layer, tensors, w) in state.items():
            if spent[name] >= 1e3 * seconds and len(found[name]) >= (3 if spent[name] < SLOW else 2):
                continue
            x, forward = clock(layer.forward, tensors)
            gradients, backward = clock(layer.backward, x, tensors, w)
            del gradients, x
            found[name].append((forward, backward))
            spent[name] += forward + backward
    gc.enable()
    best = {name: min(times, key=sum) for name, times in found.items()}
    return best, errors


def _error(arrays, x, layer, gradients):
    x, gradients, w = layer.numpy(x), [layer.numpy(g) for g in gradients], _cotangent(arrays)
    worst = 0.0
    for i in range(min(4, len(x))):
        Q, p, G, h, A, b = one = [a[i] for a in arrays]
        slack = h - G @ x[i]
        # Duals of the rows that look active, by least squares: enough to tell the active set.
        near = slack < 1e-5
        C = np.vstack([A, G[near]])
        duals = np.linalg.lstsq(C.T, -(Q @ x[i] + p), rcond=None)[0] if len(C) else np.zeros(0)
        z = np.zeros(len(h))
        z[near] = np.where(duals[len(b) :] > 1e-7, 1.0, 0.0)
        _, exact = families.active_gradients(*one, x[i], z, w[i])
        least = 1e-3 * max(np.linalg.norm(e) for e in exact)  # at a vertex some of the six vanish
        pairs = zip(gradients, exact, strict=True)
        worst = max([worst, *(np.linalg.norm(g[i] - e) / max(np.linalg.norm(e), least) for g, e in pairs if e.size)])
    return worst


def floor(n, batch, rate):
    """Milliseconds that the arithmetic of one batch takes at `rate` operations a second."""
    return 1e3 * batch * kernels.operations(n, n // 4, n) / rate


def rate():
    """Operations a second of a large matrix product on this core: the best of a second, so that a neighbour's burst does not lower it."""
    a = np.random.default_rng(0).standard_normal((768, 768))
    return 2 * 768**3 / min(clock(np.matmul, a, a)[1] for _ in range(80)) * 1e3


def page(found, errors, names, peak, machine):
    """The section; `names` are the layers that were there to be run."""
    missing = [x for x in PEERS if x not in names]
    peers = [x for x in PEERS if x in names]
    out = [
        "## Dense QPs",
        "",
        machine,
        "",
        "Milliseconds per batch, forward + backward together (forward / backward in brackets), the fastest round of each layer; m = n, n/4",
        'equalities, float64 (but `torch, float32`, which is our layer with precision="single"), one core. The jax layers run forward',
        "and backward under one jit. The floor is the arithmetic of",
        f"our method at the rate of a large matrix product here ({peak / 1e9:.0f} GF/s). `-`: failed, or left out, since a round of the",
        f"batch before took more than {SLOW / 1e3:.0f} s. QPLayer (proxsuite) runs with tolerances and proximal terms of 1e-9 (at its own",
        "defaults it is about as fast, with gradient errors up to 1e-3); qpax under vmap and jit with its implicit backend, tolerance and",
        "`target_kappa` 1e-9 (its default backend gives a wrong gradient by G, and its default `target_kappa` biases all of them).",
    ]
    if missing:
        out += ["", f"Not installed where this was run, so without a column: {', '.join(missing)}."]
    out += _summary(found, peers)
    for kind in dict.fromkeys(k for k, _, _ in found):
        shown = (OURS, SINGLE, *peers)
        head = ["n", "batch", *names, "share of the floor", *(f"gradient error of {'ours' if x == OURS else x}" for x in shown)]
        out += ["", f"### {kind}", "", _row(head), _row(["---"] * len(head))]
        for (k, n, batch), times in found.items():
            if k != kind:
                continue
            off = errors[k, n, batch]
            cells = [f"{sum(times[x]):.3g} ({times[x][0]:.3g} / {times[x][1]:.3g})" if x in times else "-" for x in names]
            share = f"{100 * floor(n, batch, peak) / sum(times[OURS]):.0f} %" if OURS in times else "-"
            out.append(_row([str(n), str(batch), *cells, share, *(f"{off[x]:.0e}" if x in off else "-" for x in shown)]))
    return "\n".join(out) + "\n"


def _summary(found, peers):
    """A row for every family and size, in its cells the ratios at all batches; the least of every column below."""
    columns = {f"{x} / ours": (x, OURS_JAX if issubclass(LAYERS[x], Jax) else OURS) for x in peers}
    if "qpth" in peers:
        columns |= {f"qpth / {x}": ("qpth", x) for x in (ARRAYS, ARRAYS_JAX)}
    batches = list(dict.fromkeys(b for _, _, b in found))
    total = {key: {name: sum(t) for name, t in times.items()} for key, times in found.items()}

    def ratio(key, slower, faster):
        t = total.get(key, {})
        return t[slower] / t[faster] if slower in t and faster in t else None

    def cell(ratios):
        return ", ".join("-" if r is None else f"{r:.1f}" for r in ratios)

    head = ["family", "n", *columns, *(["best peer at batch 1 / ours, torch"] if 1 in batches else [])]
    out = [
        "",
        f"Times of the peers over ours at batch {', '.join(map(str, batches))}: torch layers over our torch layer, qpax over our jax layer",
        "(the best peer at batch 1, of either framework, over our torch layer); and qpth over the array interior point.",
        "",
        _row(head),
        _row(["---"] * len(head)),
    ]
    for kind, n in dict.fromkeys((k, n) for k, n, _ in found):
        cells = [cell([ratio((kind, n, b), *pair) for b in batches]) for pair in columns.values()]
        if 1 in batches:
            t = total[kind, n, 1]
            best = min((x for x in peers if x in t), key=t.__getitem__, default=None)
            cells.append(f"{best} {t[best] / t[OURS]:.1f}" if best and OURS in t else "-")
        out.append(_row([kind, str(n), *cells]))
    least = []
    for pair in columns.values():
        by_batch = [[r for key in found if key[2] == b and (r := ratio(key, *pair)) is not None] for b in batches]
        least.append(cell([min(r, default=None) for r in by_batch]))
    return [*out, _row(["least", "", *least, *([""] if 1 in batches else [])])]


def _row(cells):
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--sizes", default="10,50,100")
    parser.add_argument("--batches", default="1,16,128,512")
    parser.add_argument("--seconds", type=float, default=0.7, help="clock time for each layer, family, size and batch")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--out", default=str(results_file.PATH))
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    batches = sorted(int(b) for b in options.batches.split(","))
    names = [x for x in LAYERS if x not in PEERS or importlib.util.find_spec(PEERS[x])]
    if len(names) < len(LAYERS):
        print(f"not installed, left out: {', '.join(x for x in LAYERS if x not in names)}", flush=True)
    peak, found, errors = rate(), {}, {}
    for kind in options.kinds.split(","):
        for n in map(int, options.sizes.split(",")):
            quick = names
            for batch in batches:
                key = kind, n, batch
                found[key], errors[key] = measure(*key, options.seconds, quick)
                quick = [x for x in quick if x not in PEERS or sum(found[key].get(x, (0.0,))) <= SLOW]
                shown = ", ".join(f"{k} {sum(t):.2f} ({errors[key][k]:.0e})" for k, t in found[key].items())
                print(f"{kind} n={n} batch {batch}: {shown}", flush=True)
    peak = max(peak, rate())
    results_file.write("qp", page(found, errors, names, peak, describe_machine()), options.out)


if __name__ == "__main__":
    main()
