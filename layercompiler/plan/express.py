"""The express way of a compiled problem: the kernels do a whole call at once where every instance is solved to rounding.

It is there for programs whose parameters enter as they are (no logarithms), whose outputs are parts of the point, and which the
lanes engine or the dense kernels solve without limits; all else goes the general way of `CompiledProblem.evaluate`, with the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from layercompiler import kernels
from layercompiler.derivatives.residual_map import TARGET
from layercompiler.kernels import library
from layercompiler.kernels.express import HARD, NONNEGATIVE, NONPOSITIVE, NOT_ZERO
from layercompiler.plan.convexity import open_to_doubt
from layercompiler.plan.evaluation import ACCURATE
from layercompiler.plan.search import EXACT
from layercompiler.solvers import Options
from layercompiler.solvers.lanes import MAX_ITERATIONS

_SIGNS = {"nonneg": NONNEGATIVE, "nonpos": NONPOSITIVE, "pos": NONNEGATIVE + NOT_ZERO, "neg": NONPOSITIVE + NOT_ZERO}
PAUSE = 16  # calls that go the general way after one that was tried in vain
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


class Express:
    """The express way for numpy arrays, for callers who want outputs and derivatives and ask for no facts.

    Args:
        problem: A `CompiledProblem`.
        way: Its express way with its own options.
    """

    def __init__(self, problem: Any, way: kernels.Express) -> None:
        self.problem, self.way, self.pause = problem, way, 0
        self.shapes = [p.shape for p in problem.parameters]

    def __call__(self, arrays: Sequence[np.ndarray]) -> ExpressEvaluation | None:
        """The batch, solved; None where the general way has to be gone.

        Args:
            arrays: One per parameter, (batch..., *shape), of any float type; they are read again for derivatives.
        """
        if self.pause:
            self.pause -= 1
            return None
        leads = [a.shape[: max(0, a.ndim - len(shape))] for a, shape in zip(arrays, self.shapes, strict=True)]
        if any([a.shape[len(lead) :] != shape for a, lead, shape in zip(arrays, leads, self.shapes, strict=True)]):
            return None
        batch = max(leads, key=lambda lead: (math.prod(lead), len(lead)))
        if 0 in batch or any([lead != batch and (math.prod(lead) != 1 or len(lead) > len(batch)) for lead in leads]):
            return None
        arrays = [np.ascontiguousarray(a, dtype=np.float64).reshape(a.shape) for a in arrays]
        count = math.prod(batch)
        strides = [a.size // count if lead == batch and count > 1 else 0 for a, lead in zip(arrays, leads, strict=True)]
        outputs = tuple([np.empty((*batch, *o.shape)) for o in self.problem.outputs])
        at = library.address
        addresses = np.array([*map(at, arrays), *strides, *map(at, outputs)], dtype=np.int64)
        handle = self.way.forward(count, addresses.tobytes(), self.problem.threads)
        if handle > 0:
            return ExpressEvaluation(self.problem, kernels.Passage(self.way, handle), arrays, batch, outputs)
        if -handle >= HARD:
            self.pause = PAUSE
        return None


class ExpressEvaluation:
    """A batch that the express way has solved; what is beyond reverse derivatives is that of the general way at the same point."""

    def __init__(
        self, problem: Any, passage: kernels.Passage, arrays: list[np.ndarray], batch: tuple[int, ...], outputs: tuple[np.ndarray, ...]
    ) -> None:
        self.problem, self.batch, self.outputs = problem, batch, outputs
        self._passage, self._arrays = passage, arrays

    @cached_property
    def z(self) -> np.ndarray:
        """See `Evaluation`."""
        z = np.empty((*self.batch, self.problem.zsize))
        self._passage.point(z)
        return z

    @cached_property
    def general(self) -> Any:
        """The same as an `Evaluation`."""
        return self.problem.restore(self._arrays, self.z)

    def vjp(self, cotangents: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """See `Evaluation.vjp`."""
        given = []
        for g, o in zip(cotangents, self.outputs, strict=True):
            given.append(None if g is None else np.ascontiguousarray(np.broadcast_to(g, o.shape), dtype=np.float64))
        gradients = tuple([np.empty(a.shape) for a in self._arrays])
        ends = [0 if g is None else library.address(g) for g in given]
        addresses = np.array([*ends, *map(library.address, (*gradients, *self._arrays))], dtype=np.int64)
        if self._passage.pull(addresses.tobytes(), self.problem.threads):
            return gradients
        return self.general.vjp(cotangents)

    def jvp(self, tangents: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """See `Evaluation.jvp`."""
        return self.general.jvp(tangents)

    def hvp(self, cotangents: Sequence[Any], tangents: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """See `Evaluation.hvp`."""
        return self.general.hvp(cotangents, tangents)

    def second(self, tangents1: Sequence[Any], tangents2: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """See `Evaluation.second`."""
        return self.general.second(tangents1, tangents2)
