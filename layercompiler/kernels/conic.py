"""A batched conic interior point on SIMD lanes: thousands of programs of one structure, one per lane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.errors import BuildError, OptionError, ShapeError
from layercompiler.kernels import library
from layercompiler.kernels.ldl import indices

PARTS = ("load", "equilibration", "start", "residuals", "scaling", "factors", "solves", "cones and steps", "write")
COUNTS = ("factorizations", "triangular solves", "iterations", "iterations of lanes")
PSD = 3
_ORDER = {"zero": 0, "nonnegative": 1, "second_order": 2, "psd": PSD, "exponential": 4, "power": 5}


@dataclass(frozen=True)
class ConicSolution:
    """Points, statuses and residuals of a batch.

    Attributes:
        x: Primal points, (B, n). Where dual infeasible: a direction of unboundedness with q'x = -1. NaN where the data are not finite.
        y: Dual points, (B, m). Where primal infeasible: a certificate, A'y = 0 in K* with b'y = -1.
        s: Slacks, (B, m).
        status: `layercompiler.status.Status` codes, int8 (B,). An instance that stopped early carries its best point.
        iterations: Interior-point iterations, int32 (B,).
        quality: Relative primal residual, dual residual and gap of that point, (B, 3).
    """

    x: np.ndarray
    y: np.ndarray
    s: np.ndarray
    status: np.ndarray
    iterations: np.ndarray
    quality: np.ndarray


class Conic:
    """The structure of minimise 1/2 x'Px + q'x subject to Ax + s = b, s in K, analysed once.

    Args:
        n: Variables.
        P: Row and column of each entry of the upper triangle of P, two integer arrays; no entry twice.
        A: Row and column of each entry of A, two integer arrays; no entry twice.
        cones: Pairs in the standard order: ("zero", rows), ("nonnegative", rows), ("second_order", rows of one cone),
            ("psd", order of one cone), ("exponential", number of cones), ("power", exponent of one cone).
        isa: Instruction set; the best one of the machine by default.

    Immutable and thread safe; pickling and copying rebuild it from its arguments.

    Example:
        >>> import numpy as np
        >>> from layercompiler.kernels import Conic
        >>> lp = Conic(2, ([], []), ([0, 0, 1, 2], [0, 1, 0, 1]), [("zero", 1), ("nonnegative", 2)])  # x0 + x1 = 1, x >= 0
        >>> r = lp.solve(np.zeros((1, 0)), np.array([[1.0, 2.0]]), np.array([[1.0, 1.0, -1.0, -1.0]]), np.array([[1.0, 0.0, 0.0]]))
        >>> r.status, r.x.round(6)
        (array([0], dtype=int8), array([[1., 0.]]))

    Source: Goulart, Chen 2024 (homogeneous embedding with quadratic objective); Dahl, Andersen 2021 (exponential and power cones).
    """

    def __init__(
        self, n: int, P: tuple[Any, Any], A: tuple[Any, Any], cones: Sequence[tuple[str, float]], *, isa: str | None = None
    ) -> None:
        self._handle = None
        self.n, self.P, self.A, self.cones, self.m, self.isa, arguments = checked(n, P, A, cones, isa)
        self._library, at = library.require(), library.address
        self._handle = self._library.lc_conic_new(*(at(v) if isinstance(v, np.ndarray) else v for v in arguments))
        if not self._handle:
            raise BuildError("the structure is malformed", where="Conic", got=library.reason())
        facts = np.zeros(5, np.int64)
        self._library.lc_conic_facts(self._handle, at(facts))
        self.factor_nnz, self.flops, self.order, self.folded, self.lanes = facts.tolist()

    @property
    def handle(self) -> int:
        """What the kernels know the structure by."""
        return self._handle or 0

    def solve(
        self,
        P: np.ndarray,
        q: np.ndarray,
        A: np.ndarray,
        b: np.ndarray,
        *,
        tol: float = 1e-8,
        max_iter: int = 100,
        time_limit: float = math.inf,
        warm_start: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
        threads: int = 1,
        profile: np.ndarray | None = None,
    ) -> ConicSolution:
        """Solves every instance; any operand may have a leading dimension of 1, which all instances share.

        Args:
            P: Entries of P in the order of the pattern, float64 (B, nnz P).
            q: (B, n).
            A: Entries of A in the order of the pattern, (B, nnz A).
            b: (B, m).
            tol: Relative tolerance of primal residual, dual residual and gap.
            max_iter: Iterations of one instance.
            time_limit: Seconds for each pack of instances, counted from the call.
            warm_start: x, y, s of an earlier, similar solve, (B, n), (B, m), (B, m); a useless one is ignored, instance by instance.
            threads: Threads that share the packs; results do not depend on it.
            profile: float64 (13,) to which the seconds of each part are added, see `PARTS`, and then the counts of `COUNTS`,
                summed over instances (the last one over lanes, idle or not); one thread then.

        Returns:
            The points and what became of each instance.

        Raises:
            ShapeError: An operand does not fit the structure.
        """
        if profile is not None and (
            profile.shape != (len(PARTS) + len(COUNTS),) or profile.dtype != np.float64 or not profile.flags.c_contiguous
        ):
            raise ShapeError(
                "wrong profile",
                where="profile",
                expected=f"a contiguous float64 array of shape ({len(PARTS) + len(COUNTS)},)",
                got=str(profile.shape),
            )
        if not (tol > 0 and max_iter >= 0 and time_limit >= 0):
            raise OptionError(
                "an option is out of range", where="Conic.solve", got=f"tol={tol}, max_iter={max_iter}, time_limit={time_limit}"
            )
        widths = {"P": self.P[0].size, "q": self.n, "A": self.A[0].size, "b": self.m}
        data = [np.ascontiguousarray(v, dtype=np.float64) for v in (P, q, A, b)]
        batch = max((v.shape[0] for v in data if v.ndim == 2), default=1)
        if any(v.ndim == 2 and v.shape[0] == 0 for v in data):
            batch = 0
        for (name, width), v in zip(widths.items(), data, strict=True):
            if v.ndim != 2 or v.shape[1] != width or v.shape[0] not in (1, batch):
                raise ShapeError("wrong shape", where=name, expected=f"({batch}, {width}) or (1, {width})", got=str(v.shape))
        warm = [np.ascontiguousarray(v, dtype=np.float64) for v in warm_start] if warm_start is not None else []
        if warm and [v.shape for v in warm] != [(batch, self.n), (batch, self.m), (batch, self.m)]:
            raise ShapeError(
                "wrong shape",
                where="warm_start",
                expected=f"({batch}, {self.n}), ({batch}, {self.m}) twice",
                got=str([v.shape for v in warm]),
            )
        x, y, s = np.empty((batch, self.n)), np.empty((batch, self.m)), np.empty((batch, self.m))
        status, iterations, quality = np.empty(batch, np.int8), np.empty(batch, np.int32), np.empty((batch, 3))
        if batch:
            at = library.address
            operands = [part for v in data for part in (at(v), v.shape[1] if v.shape[0] > 1 else 0)]
            failed = self._library.lc_conic_solve(
                *(self._handle, batch, *operands, *([at(v) for v in warm] or (None, None, None))),
                *(at(v) for v in (x, y, s, status, iterations, quality)),
                *(
                    float(tol),
                    float(tol),
                    min(1e-8, float(tol)),
                    int(max_iter),
                    float(time_limit),
                    1 if profile is not None else int(threads),
                ),
                None if profile is None else at(profile),
            )
            if failed:
                raise MemoryError(library.reason())
        return ConicSolution(x, y, s, status, iterations, quality)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.n, self.P, self.A, self.cones)

    def __repr__(self) -> str:
        size = f"n={self.n}, m={self.m}, kkt={self.order}, folded={self.folded}"
        return f"Conic({size}, factor={self.factor_nnz}, flops={self.flops}, isa={self.isa!r})"

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.lc_conic_free(self._handle)
            self._handle = None


def checked(n: int, P: tuple[Any, Any], A: tuple[Any, Any], cones: Sequence[tuple[str, float]], isa: str | None) -> tuple[Any, ...]:
    """A structure's arguments as immutable values, and as the arguments of the C functions that build from it."""
    if len(P) != 2 or len(A) != 2:
        raise BuildError("a pattern needs as many rows as columns", where="P, A")
    n, P, A = int(n), (indices(P[0], "P"), indices(P[1], "P")), (indices(A[0], "A"), indices(A[1], "A"))
    cones = tuple((str(kind), float(size) if kind == "power" else int(size)) for kind, size in cones)
    if P[0].size != P[1].size or A[0].size != A[1].size:
        raise BuildError("a pattern needs as many rows as columns", where="P, A")
    zero, nonnegative, kinds, sizes, alphas = _lay_out(cones)
    m = (
        zero
        + nonnegative
        + sum(size * (size + 1) // 2 if kind == 3 else size if kind == 2 else 3 for kind, size in zip(kinds, sizes, strict=True))
    )
    for array in (*P, *A):
        array.setflags(write=False)
    isa = library.instruction_set(isa)
    layout = (np.array(kinds, np.int32), np.array(sizes, np.int64), np.array(alphas, np.float64))
    arguments = (n, m, P[0].size, *P, A[0].size, *A, zero, nonnegative, len(kinds), *layout, isa.encode())
    return n, P, A, cones, m, isa, arguments


def _rebuild(n: int, P: Any, A: Any, cones: Any) -> Conic:
    return Conic(n, P, A, cones)


def _lay_out(cones: Sequence[tuple[str, float]]) -> tuple[int, int, list[int], list[int], list[float]]:
    rows, kinds, sizes, alphas, last = [0, 0], [], [], [], 0
    for kind, size in cones:
        if kind not in _ORDER:
            raise BuildError("unknown cone", where="Conic", expected=", ".join(_ORDER), got=repr(kind))
        code = _ORDER[kind]
        if code < last:
            raise BuildError(
                "the cones are not in the standard order", where="Conic", expected=", ".join(_ORDER), got=repr([k for k, _ in cones])
            )
        last = code
        if kind != "power" and (size < 0 or size > 2**31 or (size == 0 and kind in ("second_order", "psd"))):
            raise BuildError("wrong size of a cone", where="Conic", got=f"({kind!r}, {size})")
        if code < 2:
            rows[code] += int(size)
        elif kind == "exponential":
            if size > 2**24:
                raise BuildError("wrong size of a cone", where="Conic", got=f"({kind!r}, {size})")
            kinds += [code] * int(size)
            sizes += [3] * int(size)
            alphas += [0.0] * int(size)
        else:
            kinds.append(code)
            sizes.append(3 if kind == "power" else int(size))
            alphas.append(float(size) if kind == "power" else 0.0)
    return rows[0], rows[1], kinds, sizes, alphas
