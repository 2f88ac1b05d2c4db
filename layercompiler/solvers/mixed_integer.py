"""What an engine for mixed-integer programs is, and the registry."""

from __future__ import annotations

import importlib
import importlib.util
import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from layercompiler.errors import MissingDependencyError, OptionError, UnsupportedConeError
from layercompiler.programs.discrete import MixedInteger
from layercompiler.solvers.engine import Options
from layercompiler.status import Status

PART = 128  # instances that share a kept model; parts are fixed, so that results do not depend on the number of workers


@dataclass(frozen=True)
class Found:
    """Answers for a batch: minimisers (N, n), NaN where there is none; `Status` codes (N,); nodes (N,) of branch and bound."""

    x: np.ndarray
    status: np.ndarray
    nodes: np.ndarray


class MixedIntegerEngine(ABC):
    """Minimises costs over one feasible set, for many costs.

    A new engine is one file that defines `prepare` and calls `register_mixed_integer`.
    """

    name: ClassVar[str]
    package: ClassVar[str] = ""
    quadratic: ClassVar[bool] = False  # takes convex quadratic objectives

    def __init__(self, program: MixedInteger) -> None:
        self.program = program
        self._idle: list[Any] = []  # kept models; not thread-local, for a framework's own threads may end without Python
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"program": self.program}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["program"])

    @classmethod
    def accepts(cls, program: MixedInteger) -> bool:
        """Whether this engine solves such programs, and well enough to be chosen automatically."""
        return cls.quadratic or program.quadratic is None

    def take(self) -> Any:
        """A kept solver that no one uses, or a new one; `give` it back."""
        with self._lock:
            solver = self._idle.pop() if self._idle else None
        return self.prepare() if solver is None else solver

    def give(self, solver: Any) -> None:
        """Keep a solver for the next call."""
        with self._lock:
            self._idle.append(solver)

    def solve(self, costs: np.ndarray, options: Options) -> Found:
        """Minimise each row of costs (N, n); answers are exact to a relative gap of 1e-9.

        Rows with NaN are not solved and have status NONFINITE_INPUT.
        """
        count = len(costs)
        x = np.full((count, self.program.n), np.nan)
        status, nodes = np.full(count, Status.NONFINITE_INPUT, np.int8), np.zeros(count, int)
        deadline = None if options.time_limit is None else time.perf_counter() + options.time_limit
        rows = np.flatnonzero(np.isfinite(costs).all(axis=1))

        def part(members: np.ndarray) -> None:
            solver = self.take()
            x[members], status[members], nodes[members] = solver.batch(costs[members], deadline)
            self.give(solver)

        parts = [np.arange(a, min(a + PART, count)) for a in range(0, count, PART)]
        parts = [p[np.isin(p, rows, assume_unique=True)] for p in parts]
        parts = [p for p in parts if len(p)]
        workers = min(options.workers or 1, len(parts))
        if workers > 1:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(part, parts))
        else:
            for p in parts:
                part(p)
        return Found(x, status, nodes)

    @abstractmethod
    def prepare(self) -> Any:
        """A solver of one thread: `.batch(costs, deadline) -> (x, status, nodes)` for finite costs, in order, from a fresh state."""


_BUILT_IN = ("simplex", "highs", "scip")  # in the order of an automatic choice
_registry: dict[str, type[MixedIntegerEngine]] = {}


def register_mixed_integer(kind: type[MixedIntegerEngine]) -> type[MixedIntegerEngine]:
    """Make an engine known under its name; usable as a class decorator."""
    _registry[kind.name] = kind
    return kind


def mixed_integer_engine(name: str) -> type[MixedIntegerEngine]:
    """The engine class of a name.

    Raises:
        OptionError: No engine has that name.
        MissingDependencyError: Its package is not installed.
    """
    key = str(name).lower()
    if key in _BUILT_IN:
        importlib.import_module(f"layercompiler.solvers.{key}")
    if key not in _registry:
        raise OptionError(
            f"unknown mixed-integer solver {name!r}", expected=f"'auto' or one of {sorted({*_BUILT_IN, *_registry})}", got=repr(name)
        )
    kind = _registry[key]
    if kind.package and importlib.util.find_spec(kind.package) is None:
        raise MissingDependencyError(f"solver '{key}' needs the package '{kind.package}'", mend=f"pip install {kind.package}")
    return kind


def choose(name: str, program: MixedInteger) -> type[MixedIntegerEngine]:
    """The engine class of a name, or for "auto" the first built-in one that is installed and accepts the program.

    Raises:
        UnsupportedConeError: The objective is quadratic, and the engine takes linear ones only, or no engine that takes it is installed.
        OptionError: As `mixed_integer_engine`; likewise MissingDependencyError.
    """
    if name.lower() != "auto":
        kind = mixed_integer_engine(name)
        if program.quadratic is not None and not kind.quadratic:
            raise _quadratic(f"solver '{kind.name}'")
        return kind
    for key in _BUILT_IN:
        try:
            kind = mixed_integer_engine(key)
        except MissingDependencyError:
            continue
        if kind.accepts(program):
            return kind
    raise _quadratic("none of the installed solvers")


def _quadratic(who: str) -> UnsupportedConeError:
    return UnsupportedConeError(
        "the objective is quadratic in a problem with whole variables",
        expected="a solver for such problems, or a linear objective",
        got=f"{who} takes a quadratic one",
        mend="pip install pyscipopt (SCIP takes it), or linearise it: for boolean x, x**2 is x",
    )
