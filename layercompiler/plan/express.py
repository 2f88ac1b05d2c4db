"""The express way of a compiled problem: the kernels do a whole call at once where every instance is solved to rounding.

It is there for programs whose parameters enter as they are (no logarithms), whose outputs are parts of the point, and which the
lanes engine or the dense kernels solve without limits; all else goes the general way of `CompiledProblem.evaluate`, with the same numbers.
"""

from __future__ import annotations

from typing import Any

from layercompiler import kernels
from layercompiler.derivatives.residual_map import TARGET
from layercompiler.kernels.express import NONNEGATIVE, NONPOSITIVE, NOT_ZERO
from layercompiler.plan.convexity import open_to_doubt
from layercompiler.plan.evaluation import ACCURATE
from layercompiler.plan.search import EXACT
from layercompiler.solvers import Options
from layercompiler.solvers.lanes import MAX_ITERATIONS

_SIGNS = {"nonneg": NONNEGATIVE, "nonpos": NONPOSITIVE, "pos": NONNEGATIVE + NOT_ZERO, "neg": NONPOSITIVE + NOT_ZERO}
_EPSILON = 1e-7  # regularisation of the linear system, that of `kernels.Newton.refine`


def express(problem: Any, options: Options) -> kernels.Express | None:
    """The express way of a compiled problem with these options, or None where it has none."""
    binding, program = getattr(problem, "binding", None), getattr(problem, "program", None)
    if binding is None or program is None or not program.plain or binding.exponential or binding.values:
        return None
    limited = options.time_limit or options.max_iterations or not options.refinements
    if limited or options.smoothing or options.verbose or options.executor is not None:
        return None
    signs = [0] * len(program.parameters)
    if options.check_domain:
        for k, p in enumerate(program.parameters):
            if not set(p.attributes) <= set(_SIGNS):
                return None
            for attribute in p.attributes:
                signs[k] |= _SIGNS[attribute]
    engine, tolerance = problem.search.attempts[0]
    conic: Any = getattr(engine, "conic", None)
    newton: Any = getattr(problem.map, "newton", None)
    dense: Any = getattr(problem, "dense", None)
    if dense is None and (conic is None or newton is None or open_to_doubt(program)):
        return None
    scaling = problem.map.equilibrate.kernel if problem.map.equilibrate is not None else None
    s, substitution = problem.structure, binding.substitution
    plan = [
        *(binding.data.handle, substitution.handle if substitution else 0, scaling.handle if scaling else 0),
        *((conic.handle, newton.handle, 0) if dense is None else (0, 0, dense.kernel.handle)),
        *(binding.picks.handle, binding.spreads.handle, binding.pullback.handle, s.n, s.m, *binding.full),
        *((0, 0, 0) if dense is None else (dense.kernel.equalities, dense.split, dense.kernel.forms + 4)),
        *(MAX_ITERATIONS, options.refinements),
    ]
    settings = (options.engine_tolerance or tolerance, EXACT, TARGET, _EPSILON, ACCURATE)
    return kernels.Express(plan, settings, signs, (problem, scaling))
