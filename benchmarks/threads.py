"""Two threads against one at batch 128: the kernels alone, and our layers whole (python -m benchmarks.threads [problem ...]).

Needs a second core that is idle; wall time, calls in turns, the best of each. Linear algebra libraries get one thread.
"""

import os
import sys
import time

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import numpy as np
import torch

import layercompiler as lc
from benchmarks import results
from benchmarks.problems import BUILDERS
from layercompiler.plan.evaluation import Bound

BATCH, SECONDS = 128, 4.0
NAMES = ("qp", "lp", "portfolio_qp", "portfolio_socp", "logistic", "sdp", "sparsemax", "mpc", "robust_lp", "sparse_qp")


def best(calls, seconds=SECONDS):
    """Shortest wall time of each call, in milliseconds; they take turns."""
    found = [[] for _ in calls]
    for call in calls:
        call()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(found[0]) < 5:
        for times, call in zip(found, calls, strict=True):
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
    return [min(times) for times in found]


def row(name):
    """One thread over two: the interior point, and the layer forward and backward."""
    case = BUILDERS[name]()
    arrays = case.sample(BATCH, np.random.default_rng(BATCH))
    compiled = lc.compile(case.problem, parameters=case.parameters, variables=case.variables, solver="lanes")
    data = Bound.of(compiled, compiled.reader.read(arrays, True, raise_nonfinite=True)).scaled
    conic = compiled.search.attempts[0][0].conic
    kernel = best([lambda k=k: conic.solve(data.P, data.q, data.A, data.b, tol=1e-7, threads=k) for k in (1, 2)])
    make = {"parameters": case.parameters, "variables": case.variables, "solver": "lanes"}
    layers = [lc.export(case.problem, "torch", **make, options={"workers": k}) for k in (1, 2)]
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    layer = best([lambda k=k: k(*tensors) for k in layers])
    return f"| {name} | " + " | ".join(f"{t[0]:.2f} / {t[1]:.2f} | {t[0] / t[1]:.2f}" for t in (kernel, layer)) + " |"


def main():
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        raise SystemExit("this run has one core")
    torch.set_num_threads(1)
    head = ["problem", "kernel, 1 / 2 threads, ms", "times as fast", "layer forward, 1 / 2 threads, ms", "times as fast"]
    lines = ["## Two threads", "", f"Batch {BATCH}, solver='lanes', best of {SECONDS:.0f} seconds of calls in turns; 1.7 is asked.", ""]
    lines += ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for name in sys.argv[1:] or NAMES:
        lines.append(row(name))
        print(lines[-1], flush=True)
    results.write("threads", "\n".join(lines))


if __name__ == "__main__":
    main()
