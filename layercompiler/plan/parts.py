"""What the pieces of a compiled problem know of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from layercompiler.derivatives.smoothing import SmoothedMap
from layercompiler.plan.arguments import Arguments
from layercompiler.plan.binding import Binding
from layercompiler.plan.search import Search
from layercompiler.programs.cone import ConeProgram, OutputSpec, Structure
from layercompiler.programs.presolve import Elimination
from layercompiler.solvers import Options


class Parts(Protocol):
    """A compiled problem, as its evaluations and its report read it."""

    program: ConeProgram
    elimination: Elimination
    structure: Structure
    reader: Arguments
    binding: Binding | None
    map: Any
    search: Search
    on_error: str
    options: Options

    @property
    def outputs(self) -> Sequence[OutputSpec]:
        """The outputs in order."""
        ...

    @property
    def threads(self) -> int:
        """Threads of compiled kernels."""
        ...

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What is tried, in turn, after the engine's first run."""
        ...

    @property
    def refining(self) -> str:
        """How points of an engine are taken to rounding."""
        ...

    def smoothed_map(self, mu: float) -> SmoothedMap:
        """The residual map with the barrier of weight `mu`."""
        ...
