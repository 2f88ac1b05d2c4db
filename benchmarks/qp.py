"""Batches of dense QPs through torch and jax layers, the peers and us, in one run on one pinned core; writes its part of RESULTS.md.

    python -m benchmarks.qp [--sizes 10,50,100] [--batches 1,16,128,512] [--seconds 1] [--out benchmarks/RESULTS.md]

m = n inequalities, n/4 equalities, float64, every instance its own matrices. Layers take turns, one forward and one backward call each,
so that what the machine does meanwhile falls on all of them alike; reported are the fastest rounds. Gradient errors are relative, the
largest of the six matrices and of four instances, beside the exact active set refined in long double (tests/qp/families.py).
"""

from __future__ import annotations

import argparse
import gc
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
MOREAU, QPTH, QPLAYER, QPAX = "moreau", "qpth", "QPLayer", "qpax"
OURS, OURS_JAX = "layercompiler, torch", "layercompiler, jax"
ARRAYS, ARRAYS_JAX = "arrays, torch", "arrays, jax"
# Of each peer, the layer of ours in the same framework.
PEERS = {MOREAU: OURS, QPTH: OURS, QPLAYER: OURS, QPAX: OURS_JAX}
LONGEST = 4.0  # seconds of a round: a peer that would take longer is left out


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
    solver = "auto"

    def __init__(self, n, m, p, batch):
        layer = lc.export(lc.QP(n, m, p), "torch", solver=self.solver, options={"workers": 1})
        self.call = lambda *t: layer(*t)[0]


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


class QpLayer(Torch):
    """ProxSuite's; it writes gradients in torch's default dtype."""

    def __init__(self, n, m, p, batch):
        from proxsuite.torch.qplayer import QPFunction

        torch.set_default_dtype(torch.float64)
        none = torch.full((batch, m), -1e20)
        solve = QPFunction(eps=1e-9, eps_backward=1e-9)
        self.call = lambda Q, c, G, h, A, b: solve(Q, c, A, b, G, none, h)[0]


class Jax:
    """Our layer of jax arrays under jit; forward gives x with what its pullback needs."""

    solver = "auto"

    def __init__(self, n, m, p, batch):
        import jax

        jax.config.update("jax_enable_x64", True)
        self.jax = jax
        solve = self.build(n, m, p)

        def both(w, *arrays):
            x, pull = jax.vjp(solve, *arrays)
            return x, pull(w)

        self.both = jax.jit(both)

    def build(self, n, m, p):
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
    """With the backend whose gradient by G is right, and relaxed as little as its default tolerance allows."""

    def build(self, n, m, p):
        import qpax

        def solve(Q, c, G, h, A, b):
            return qpax.solve_qp_primal(Q, c, A, b, G, h, backend="i", solver_tol=1e-9, target_kappa=1e-6)

        return self.jax.vmap(solve)


LAYERS = {
    OURS: Ours,
    OURS_JAX: Jax,
    ARRAYS: Arrays,
    ARRAYS_JAX: JaxArrays,
    MOREAU: Moreau,
    QPTH: Qpth,
    QPLAYER: QpLayer,
    QPAX: Qpax,
}


def _cotangent(arrays):
    return np.random.default_rng(1).standard_normal(arrays[1].shape)


def clock(function, *arguments):
    began = time.perf_counter()
    result = function(*arguments)
    return result, 1e3 * (time.perf_counter() - began)


def measure(kind, n, batch, seconds, names=tuple(LAYERS)):
    """Fastest forward and backward milliseconds by layer, and gradient errors."""
    m, p = n, n // 4
    arrays = families.batch(kind, n, m, p, batch)
    state, found, errors = {}, {}, {}
    for name in names:
        try:
            layer = LAYERS[name](n, m, p, batch)
            tensors, w = layer.prepare(arrays)
            x = layer.forward(tensors)
            gradients = layer.backward(x, tensors, w)
            errors[name] = _error(arrays, layer, x if x is not None else layer.x, gradients)
            state[name], found[name] = (layer, tensors, w), []
        except Exception as error:
            print(f"    {name}: {type(error).__name__}: {str(error)[:100]}", flush=True)
    spent = dict.fromkeys(state, 0.0)
    gc.collect()
    gc.disable()
    while any(s < 1e3 * seconds for s in spent.values()):
        for name, (layer, tensors, w) in state.items():
            if spent[name] >= 1e3 * seconds:
                continue
            x, forward = clock(layer.forward, tensors)
            gradients, backward = clock(layer.backward, x, tensors, w)
            del gradients, x
            found[name].append((forward, backward))
            spent[name] += forward + backward
    gc.enable()
    best = {name: min(times, key=sum) for name, times in found.items()}
    return best, errors


def _error(arrays, layer, x, gradients):
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


def page(found, errors, peak, machine):
    out = [
        "## Dense QPs",
        "",
        machine,
        "",
        "Milliseconds per batch, forward + backward together (forward / backward in brackets), the fastest round of each layer; m = n, n/4",
        "equalities, float64, one core. Jax layers run forward and backward under one jit. The floor is the arithmetic of",
        f"our method at the rate of a large matrix product here ({peak / 1e9:.0f} GF/s). Ratios are over our layer in the peer's",
        f"framework: jax for qpax, else torch. Left out: a peer whose round would take longer than {LONGEST:.0f} s, and arrays at other",
        "batches than 128 in families but std. qpax: backend 'i', target_kappa 1e-6, with which its gradients are what is shown.",
        "",
        "### Summary: how many times faster",
        "",
        _row(
            [
                "family",
                "n",
                *(f"over {x}, batch 128" for x in PEERS),
                "best peer at batch 1",
                "over it",
                f"{ARRAYS} over qpth",
                f"{ARRAYS_JAX} over qpth",
            ]
        ),
        _row(["---"] * (6 + len(PEERS))),
    ]
    for kind, n in dict.fromkeys((k, n) for k, n, _ in found):
        many, one = (_totals(found.get((kind, n, b), {})) for b in (128, 1))
        best = min((x for x in PEERS if x in one), key=one.get, default=None)
        arrays = [_over(many, QPTH, x) for x in (ARRAYS, ARRAYS_JAX)]
        alone = [best, _over(one, best, PEERS[best])] if best else ["", ""]
        out.append(_row([kind, str(n), *(_over(many, x, ours) for x, ours in PEERS.items()), *alone, *arrays]))
    for kind in KINDS:
        if not any(k == kind for k, _, _ in found):
            continue
        head = [
            "n",
            "batch",
            *LAYERS,
            *(f"{x} / ours" for x in PEERS),
            "share of the floor",
            "gradient error of ours",
            *(f"of {x}" for x in PEERS),
        ]
        out += ["", f"### {kind}", "", _row(head), _row(["---"] * len(head))]
        for (k, n, batch), times in found.items():
            if k != kind:
                continue
            total = _totals(times)
            cells = [f"{sum(times[x]):.3g} ({times[x][0]:.3g} / {times[x][1]:.3g})" if x in times else "-" for x in LAYERS]
            ratios = [_over(total, x, ours) for x, ours in PEERS.items()]
            share = f"{100 * floor(n, batch, peak) / total[OURS]:.0f} %" if OURS in total else ""
            off = [f"{errors[k, n, batch][x]:.0e}" if x in errors[k, n, batch] else "-" for x in (OURS, *PEERS)]
            out.append(_row([str(n), str(batch), *cells, *ratios, share, *off]))
    return "\n".join(out) + "\n"


def _totals(times):
    return {name: sum(t) for name, t in times.items()}


def _over(total, peer, ours):
    return f"{total[peer] / total[ours]:.1f}" if peer in total and ours in total else "-"


def _row(cells):
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--sizes", default="10,50,100")
    parser.add_argument("--batches", default="1,16,128,512")
    parser.add_argument("--seconds", type=float, default=0.6, help="clock time for each layer, family, size and batch")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--out", default=str(results_file.PATH))
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    batches = [int(b) for b in options.batches.split(",")]
    peak, found, errors = rate(), {}, {}
    for kind in options.kinds.split(","):
        for n in map(int, options.sizes.split(",")):
            slow = set()
            for batch in batches:
                names = [x for x in LAYERS if x not in slow and (x not in (ARRAYS, ARRAYS_JAX) or kind == "std" or batch == 128)]
                found[kind, n, batch], errors[kind, n, batch] = best, off = measure(kind, n, batch, options.seconds, names)
                slow |= {x for x in PEERS if x in best and sum(best[x]) * _next(batches, batch) / batch > 1e3 * LONGEST}
                print(f"{kind} n={n} batch {batch}: {', '.join(f'{k} {sum(t):.2f} ({off[k]:.0e})' for k, t in best.items())}", flush=True)
    peak = max(peak, rate())
    results_file.write("qp", page(found, errors, peak, describe_machine()), options.out)


def _next(batches, batch):
    return min((b for b in batches if b > batch), default=batch)


if __name__ == "__main__":
    main()
