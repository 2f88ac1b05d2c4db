"""Dense QPs on a GPU: our layers (torch, jax) beside qpth on the same device, and one CPU core of Clarabel and PIQP.

    python -m benchmarks.gpu_qp                    writes the section "gpu_qp" of RESULTS.md; under eight minutes
    python -m benchmarks.gpu_qp --seconds 60       less of everything; --out FILE writes elsewhere
    python -m benchmarks.gpu_qp --device cpu       the same columns on one core, to see that they run

The clock is looked at before every layer: what there is no time for is left out by name, like peers that are not installed, and the table
of what has been measured is written all the same. The wheels that a machine without a network needs are named in README.md.
"""

import argparse
import importlib.util
import platform
import time

import numpy as np
import torch

import layercompiler as lc
from benchmarks.results import PATH, write
from tests.solvers.interior_point.programs import family, gradients

SIZES = (10, 50, 100)
REPEATS = 20


def clock(run, seconds, wait=lambda: None):
    """Shortest of a few runs in milliseconds, after a warm-up; no more than `seconds` altogether."""
    began = time.perf_counter()
    run()
    wait()
    best = np.inf
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        wait()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > seconds:
            break
    return 1e3 * best


def torch_runs(layer, numbers, device, v):
    """(forward, forward and backward) of a torch layer as functions; the second returns x and the gradients."""
    tensors = [torch.tensor(a, device=device).requires_grad_() for a in numbers]
    cotangent = torch.tensor(v, device=device)

    def both():
        x = layer(*tensors)
        return x.detach(), torch.autograd.grad(x, tensors, cotangent)

    return lambda: layer(*tensors), both


def ours_in_torch(n, m, k, device):
    """Our layer as a function of (Q, p, G, h, A, b)."""
    layer = lc.export(lc.QP(n, m, k), "torch", solver="interior_point", variables=["x"], on_error="flag", options={"check_domain": False})
    return lambda *t: layer(*t)[0]


def qpth_in_torch(*_):
    """Qpth's layer."""
    from qpth.qp import QPFunction

    return QPFunction(verbose=-1, check_Q_spd=False)


def ours_in_jax(n, m, k, numbers, v, device):
    """(forward, forward and backward) of our jax layer, compiled."""
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cuda" if device == "cuda" else "cpu")
    layer = lc.export(lc.QP(n, m, k), "jax", solver="interior_point", variables=["x"], on_error="flag", options={"check_domain": False})
    arrays = [jax.numpy.asarray(a) for a in numbers]
    forward = jax.jit(lambda *a: layer(*a)[0])

    def pulled(*a):
        x, pull = jax.vjp(lambda *t: layer(*t)[0], *a)
        return x, pull(jax.numpy.asarray(v))

    both = jax.jit(pulled)
    return lambda: forward(*arrays).block_until_ready(), lambda: jax.block_until_ready(both(*arrays))


def host_solvers(numbers):
    """{name: function that solves the batch one by one on one core, forward only}."""
    import scipy.sparse as sp

    Q, p, G, h, A, b = numbers
    found = {}
    if importlib.util.find_spec("clarabel"):
        import clarabel

        settings = clarabel.DefaultSettings()
        settings.verbose, settings.max_threads = False, 1
        cones = [clarabel.ZeroConeT(b.shape[1]), clarabel.NonnegativeConeT(h.shape[1])]

        def run_clarabel():
            for i in range(len(p)):
                C = sp.csc_matrix(np.vstack([A[i], G[i]]))
                clarabel.DefaultSolver(sp.csc_matrix(np.triu(Q[i])), p[i], C, np.concatenate([b[i], h[i]]), cones, settings).solve()

        found["Clarabel, one core"] = run_clarabel
    if importlib.util.find_spec("piqp"):
        import piqp

        def run_piqp():
            for i in range(len(p)):
                solver = piqp.DenseSolver()
                try:
                    solver.setup(Q[i], p[i], A[i], b[i], G[i], None, h[i])
                except TypeError:  # versions before 0.5 know upper bounds only
                    solver.setup(Q[i], p[i], A[i], b[i], G[i], h[i])
                solver.solve()

        found["PIQP, one core"] = run_piqp
    return found


def worst_error(numbers, v, x, g, count=8):
    """Largest relative error of x and of the gradients of some instances against exact active sets."""
    Q, p, G, h, A, b = numbers
    off = 0.0
    for i in range(min(count, len(p))):
        near = h[i] - G[i] @ x[i] < 1e-6
        exact = gradients(Q[i], p[i], A[i], b[i], G[i], h[i], near, v[i])
        for got, want in zip((g[j][i] for j in (0, 1, 4, 5, 2, 3)), exact, strict=True):
            off = max(off, np.linalg.norm(got - want) / np.linalg.norm(want))
    return off


def measure(n, batch, device, seconds, left):
    """Rows (layer, forward ms, both ms, gradient error, what is missing) for one size; a layer begins only while `left()` is positive."""
    m, k = n, max(n // 4, 1)
    Q, p, A, b, G, h = family("std", n, m, k, batch)
    numbers, v = (Q, p, G, h, A, b), np.random.default_rng(1).standard_normal((batch, n))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    runs = {
        "layercompiler, torch": lambda: torch_runs(ours_in_torch(n, m, k, device), numbers, device, v),
        "layercompiler, jax": lambda: ours_in_jax(n, m, k, numbers, v, device),
        "qpth": lambda: torch_runs(qpth_in_torch(), numbers, device, v),
    }
    rows = []
    for name, make in runs.items():
        if left() <= 0:
            rows.append((name, None, None, None, "out of time"))
            continue
        try:
            forward, both = make()
            x, g = both()
            off = worst_error(numbers, v, host(x), [host(a) for a in g])
            rows.append((name, clock(forward, seconds, wait), clock(both, seconds, wait), off, ""))
        except Exception as error:  # the others go on
            rows.append((name, None, None, None, f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"))
    for name, run in host_solvers(numbers).items():
        rows.append((name, clock(run, seconds) if left() > 0 else None, None, None, "" if left() > 0 else "out of time"))
    return rows


def host(a):
    """A numpy array of a framework's."""
    return a.cpu().numpy() if isinstance(a, torch.Tensor) else np.asarray(a)


def table(results):
    """Markdown."""
    show = lambda value, form: "–" if value is None else format(value, form)  # noqa: E731
    lines = ["| n | batch | layer | forward ms | forward + backward ms | of qpth's | gradient error |", "|---|---|---|---|---|---|---|"]
    for (n, batch), rows in results.items():
        peer = next((both for name, _, both, *_ in rows if name == "qpth"), None)
        for name, forward, both, off, why in rows:
            ratio = peer / both if peer and both and name != "qpth" else None
            cells = [show(forward, ".2f"), show(both, ".2f"), show(ratio, ".1f"), show(off, ".0e")]
            lines.append(f"| {n} | {batch} | {name}{f' ({why})' if why else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=420.0, help="for everything")
    parser.add_argument("--batches", default="128,512", help="batch sizes")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--out", default=str(PATH))
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    arguments = parser.parse_args()
    began, device = time.perf_counter(), arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device: is it the CUDA build of torch? (--device cpu runs without)")
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if device == "cuda" else f"no CUDA device: one core of a {platform.machine()} CPU instead"
    print(name, flush=True)
    cells = [(int(n), int(b)) for n in arguments.sizes.split(",") for b in arguments.batches.split(",")]
    results = {}
    for i, (n, batch) in enumerate(cells):
        left = lambda: arguments.seconds - (time.perf_counter() - began)  # noqa: E731
        if left() <= 0:
            print(f"out of time before n={n}, batch {batch}", flush=True)
            break
        results[n, batch] = measure(n, batch, device, 0.08 * left() / (len(cells) - i), left)
        print(table({(n, batch): results[n, batch]}).split("\n", 2)[2], flush=True)
    text = f"""## Dense QPs on a device (`python -m benchmarks.gpu_qp`)

{name}; torch {torch.__version__}; float64, family std (m = n, n/4 equalities); milliseconds for the whole batch,
shortest of up to {REPEATS}; "of qpth's": how many times faster than qpth forward + backward; gradient error against exact active sets, largest of 8 instances.

{table(results)}
"""
    write("gpu_qp", text, arguments.out)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
