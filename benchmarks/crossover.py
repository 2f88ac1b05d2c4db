"""Measures when the dense kernels beat the lanes engine, which is what the constants in layercompiler/plan/crossover.py say.

    python -m benchmarks.crossover [--batch 64] [--seconds 0.5]

Forward and backward of linear and quadratic programs of many shapes by both engines, in one process; beside the measured ratio stands
that of the model, which chooses the dense kernels where it is above one (and always below `_TINY` operations).
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import layercompiler as lc
from layercompiler import kernels
from layercompiler.plan import crossover
from tests.corpus import stored
from tests.qp.test_agreement import LINEAR


def best(function, seconds):
    """Fastest of the calls that fit into `seconds`, at least three, in milliseconds."""
    times = []
    while len(times) < 3 or sum(times) < seconds:
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def measure(problem, theta, parameters, variables, seconds):
    """Milliseconds of forward and backward by the lanes engine and by the dense kernels."""
    out = []
    for engine in ("lanes", "dense_qp"):
        compiled = lc.compile(problem, parameters=parameters, variables=variables, solver=engine, options={"workers": 1})
        ones = [np.ones(o.shape) for o in compiled.evaluate(theta).outputs]

        def both(compiled=compiled, ones=ones):
            compiled.evaluate(theta).vjp(ones)

        out.append(best(both, seconds))
    return out, compiled


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.5)
    options = parser.parse_args()
    heads = f"{'problem':28s} {'n':>4s} {'m':>4s} {'operations':>12s} {'lanes ms':>9s} {'dense ms':>9s}"
    print(f"{heads} {'measured':>8s} {'model':>6s}  choice")
    for size in stored.SIZES:
        for name in LINEAR:
            if name not in stored.names(size):
                continue
            case, point = stored.case(size, name), next(iter(stored.points(size, name)))
            theta = [np.repeat(a[None], options.batch, axis=0) for a in point.theta]
            (lanes, ours), compiled = measure(case.problem, theta, case.parameters, case.variables, options.seconds)
            s = compiled.structure
            operations = kernels.operations(s.n, *crossover._rows(s))
            cones = kernels.cone_list(s.cones.blocks)
            flops = kernels.Conic(s.n, (s.P_rows, s.P_cols), (s.A_rows, s.A_cols), cones).flops
            model = crossover.advantage(s, flops)
            choice = "dense" if operations <= crossover._TINY or model > 1 else "lanes"
            facts = f"{size + ' ' + name:28s} {s.n:4d} {s.m:4d} {operations:12.0f} {lanes:9.2f} {ours:9.2f}"
            print(f"{facts} {lanes / ours:8.2f} {model:6.2f}  {choice}")


if __name__ == "__main__":
    main()
