"""What an engine is, the options that mean the same for every engine, and the registry."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from layercompiler.errors import MissingDependencyError, OptionError, nearest
from layercompiler.programs.cone import Data, Structure
from layercompiler.status import Status

# Of this process: a thread more than cores it may use would only take turns with the others.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Options:
    """Options of a solve; they mean the same for every engine.

    Attributes:
        tolerance: Relative residual ||F|| up to which an instance counts as solved. It is checked on the data by us.
        engine_tolerance: Tolerance that the engine stops at before refinement; None lets the plan choose.
        max_iterations: Iteration limit of the engine (calls with one go to engines that count, not to the dense kernels); None for its own.
        time_limit: Seconds for the whole call; None for none.
        refinements: Most Newton steps on the residual map; 0 keeps the engine's point.
        workers: Threads for host engines; None for the number of cores.
        executor: Any `concurrent.futures.Executor` to use instead of threads (Dask, Ray and MPI offer one).
        check_domain: Check parameter values against their declared attributes (nonneg, symmetric, PSD, ...).
        verbose: Let the engine print.
        smoothing: 0 for derivatives of the solution. mu > 0 for those of the barrier-smoothed problem, with -mu sum log s_i in place of
            s >= 0 in the rows as written: outputs stay those of the problem, and derivatives see rows before they become active. For
            linear and quadratic programs.
        precision: "double": everything is solved in float64. "single": float32 tensors of programs written as matrices (`layercompiler.QP`)
            that go to the dense kernels are solved in float32, but for the instances whose active rows float32 cannot tell; for torch,
            eager reverse mode. It is up to twice as fast, and right to about 1e-4. Whatever else there is stays float64.
    """

    tolerance: float = 1e-8
    engine_tolerance: float | None = None
    max_iterations: int | None = None
    time_limit: float | None = None
    refinements: int = 12
    workers: int | None = None
    executor: Executor | None = None
    check_domain: bool = True
    verbose: bool = False
    smoothing: float = 0.0
    precision: str = "double"

    def __post_init__(self) -> None:
        for name in ("tolerance", "engine_tolerance", "time_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"option '{name}' must be positive", expected="a number > 0", got=repr(value))
        if not 0 <= self.smoothing < float("inf"):
            raise OptionError("option 'smoothing' must not be negative", expected="a number >= 0", got=repr(self.smoothing))
        if self.precision not in ("double", "single"):
            raise OptionError("unknown precision", where="precision", expected="'double' or 'single'", got=repr(self.precision))
        for name, least in (("max_iterations", 1), ("workers", 1), ("refinements", 0)):
            value = getattr(self, name)
            if value is not None and (int(value) != value or value < least):
                raise OptionError(f"option '{name}' must be a whole number of at least {least}", got=repr(value))

    @classmethod
    def of(cls, options: Options | dict[str, Any] | None) -> Options:
        """Options from None, a dict of fields, or themselves."""
        if options is None or isinstance(options, dict):
            known = {f.name for f in fields(cls)}
            unknown = set(options or ()) - known
            if unknown:
                mend = nearest(min(unknown), known, "see layercompiler.Options")
                raise OptionError(
                    f"unknown option {sorted(unknown)}",
                    where="options",
                    expected=f"some of {sorted(known)}",
                    got=f"{sorted(unknown)}",
                    mend=mend,
                )
            return cls(**(options or {}))
        if not isinstance(options, cls):
            raise OptionError(
                "options are neither Options nor a dict", got=type(options).__name__, mend="options={'tolerance': 1e-6}, for instance"
            )
        return options

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "executor": None}


@dataclass(frozen=True)
class Raw:
    """What an engine answers for a batch: a point or a certificate, and the engine's own word.

    Attributes:
        x: (B, n); `y` (B, m), `s` (B, m).
        status: (B,) `Status` codes as the engine sees them; for infeasible instances x, y, s hold the certificate.
        iterations: (B,).
    """

    x: np.ndarray
    y: np.ndarray
    s: np.ndarray
    status: np.ndarray
    iterations: np.ndarray

    def take(self, index: np.ndarray) -> Raw:
        """The instances `index`."""
        return Raw(self.x[index], self.y[index], self.s[index], self.status[index], self.iterations[index])


class Engine(ABC):
    """A solver of quadratic cone programs in the standard form.

    A new engine is one file that defines a subclass with `solve_one` (or `solve`) and calls `register`.
    """

    name: ClassVar[str]
    cones: ClassVar[frozenset[str]]
    quadratic: ClassVar[bool] = True
    releases_gil: ClassVar[bool] = False
    rough: float = 1e-6  # tolerance of the first try, which refinement takes to rounding
    tightest: ClassVar[float] = 1e-10  # tolerance of the second try, where refinement did not reach rounding from the first
    package: ClassVar[str] = ""
    extra: ClassVar[str] = ""

    @classmethod
    def available(cls) -> bool:
        """Whether the package behind the engine is installed."""
        return not cls.package or importlib.util.find_spec(cls.package) is not None

    @classmethod
    def accepts(cls, structure: Structure) -> bool:
        """Whether the engine handles every cone (and the quadratic objective) of a structure."""
        kinds = {cone.name for cone, _ in structure.cones.blocks}
        return kinds <= cls.cones and (cls.quadratic or len(structure.P_rows) == 0)

    def __init__(self, structure: Structure) -> None:
        self.structure = structure

    def solve(self, data: Data, tolerance: float, options: Options, deadline: float | None) -> Raw:
        """Solve a batch; results do not depend on the number of workers.

        Args:
            data: Numbers of the batch.
            tolerance: Relative tolerance to stop at.
            options: Limits and workers.
            deadline: Seconds left for this call, or None.
        """
        batch = data.batch
        # Instances share the deadline, so they are handed the moment at which it ends, in time that other processes know.
        end = None if deadline is None else time.time() + deadline
        arguments = [(data.one(i), tolerance, options, end) for i in range(batch)]
        workers = options.workers or CORES
        if options.executor is not None and batch > 1:
            results = list(options.executor.map(_Solve(type(self), self.structure), arguments))
        elif self.releases_gil and workers > 1 and batch > 1 and not options.verbose:
            results = list(_pool(workers).map(self._solve_until, arguments))
        else:
            results = [self._solve_until(a) for a in arguments]
        n, m = self.structure.n, self.structure.m
        raw = Raw(
            np.full((batch, n), np.nan),
            np.full((batch, m), np.nan),
            np.full((batch, m), np.nan),
            np.zeros(batch, np.int8),
            np.zeros(batch, int),
        )
        for i, (x, y, s, status, iterations) in enumerate(results):
            if x is not None:
                raw.x[i], raw.y[i], raw.s[i] = x, y, s
            raw.status[i], raw.iterations[i] = status, iterations
        return raw

    def resume(self, data: Data, tolerance: float, options: Options, deadline: float | None, earlier: Raw) -> Raw:
        """Solve to a tighter tolerance, from what this engine answered before; an engine that has no use for it starts anew."""
        return self.solve(data, tolerance, options, deadline)

    def _solve_until(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """`solve_one` with what is left of the time until `end`."""
        data, tolerance, options, end = arguments
        left = None if end is None else end - time.time()
        if left is not None and left <= 0:
            return None, None, None, Status.TIME_LIMIT, 0
        return self.solve_one(data, tolerance, options, left)

    @abstractmethod
    def solve_one(self, data: tuple[np.ndarray, ...], tolerance: float, options: Options, deadline: float | None) -> tuple[Any, ...]:
        """Solve one instance (P, q, d, A, b); returns (x, y, s, status, iterations), x None where there is no point."""


@dataclass(frozen=True)
class _Solve:
    """A picklable call of an engine, for executors that live in other processes."""

    kind: type[Engine]
    structure: Structure

    def __call__(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.kind(self.structure)._solve_until(arguments)


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def _pool(workers: int) -> Executor:
    """One pool of threads per process and size; a forked child gets its own."""
    key = (os.getpid(), workers)
    with _pools_lock:
        if key not in _pools:
            for old in [k for k in _pools if k[0] != key[0]]:
                del _pools[old]
            _pools[key] = ThreadPoolExecutor(workers, thread_name_prefix="layercompiler")
        return _pools[key]


_BUILT_IN = ("lanes", "dense_qp", "clarabel", "scs", "ecos", "moreau", "diffcp", "interior_point")
_registry: dict[str, type[Engine]] = {}


def register(kind: type[Engine]) -> type[Engine]:
    """Make an engine known under its name; usable as a class decorator."""
    _registry[kind.name] = kind
    return kind


def engine_names() -> tuple[str, ...]:
    """Names of all engines, installed or not."""
    for name in _BUILT_IN:
        if name not in _registry and importlib.util.find_spec(f"layercompiler.solvers.{name}"):
            importlib.import_module(f"layercompiler.solvers.{name}")
    return tuple(_registry)


def engine(name: str) -> type[Engine]:
    """The engine class of a name, case-insensitive.

    Raises:
        OptionError: No engine has that name.
        MissingDependencyError: Its package is not installed.
    """
    key = str(name).lower()
    names = engine_names()
    if key not in names:
        mend = nearest(key, names, "leave `solver` out: the layer chooses by the problem's cones and sizes")
        raise OptionError(f"unknown solver {name!r}", expected=f"one of the available solvers {sorted(names)}", got=repr(name), mend=mend)
    kind = _registry[key]
    if not kind.available():
        ours = kind.package.startswith("layercompiler")
        mend = f"pip install 'layercompiler[{kind.extra or kind.package}]'"
        raise MissingDependencyError(
            f"solver '{key}' needs " + ("the compiled kernels, which were not built" if ours else f"the package '{kind.package}'"),
            mend="install a C++17 compiler and reinstall layercompiler, or use another solver" if ours else mend,
        )
    return kind
