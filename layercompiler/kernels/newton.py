"""Newton's method on the residual map of conic programs, and its linearisation, one instance per SIMD lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.errors import BuildError, ShapeError
from layercompiler.kernels import library
from layercompiler.kernels.conic import PSD, checked


@dataclass(frozen=True)
class Refined:
    """Points of the residual map after Newton's method; F(x, v) = [P x + A'y + q; A x + s - b], y = Proj_{K*}(v), s = y - v.

    Attributes:
        x: (B, n).
        v: (B, m), y - s.
        y: (B, m).
        F_x: (B, n); `F_y` (B, m).
        norm: (B,) relative residual: the larger of both, each over one plus the size of its terms; infinite where it is NaN.
        taken: (B,) steps taken, int32.
        suspect: (B,) bool, whether a projection may be at a kink there (within 1e-9, relative; 1e-8 for exponential and power cones).
        linear: The linearisation at these points.
    """

    x: np.ndarray
    v: np.ndarray
    y: np.ndarray
    F_x: np.ndarray
    F_y: np.ndarray
    norm: np.ndarray
    taken: np.ndarray
    suspect: np.ndarray
    linear: Linearization


class Newton:
    """The residual map's structure: projections, linear system and its symbolic factorisation.

    Args:
        n: Variables.
        P: Row and column of each entry of the upper triangle of P.
        A: Row and column of each entry of A.
        cones: As in `Conic`. PSD cones are treated in the coordinates of their eigenvectors, so their columns of A fill in.
        turns: Indices among the PSD cones of those whose variables turn with the eigenvectors too, which spares the fill: each
            row of such a cone holds one entry of A, in a column of its own, and P is a multiple of the identity in the svec
            coordinates of these columns, for every instance.
        isa: Instruction set; the best one of the machine by default.

    The projections are those of `layercompiler.cones`, to full precision. Immutable and thread safe; pickling rebuilds it.

    Source: Busseti, Moursi, Boyd 2019.
    """

    def __init__(
        self,
        n: int,
        P: tuple[Any, Any],
        A: tuple[Any, Any],
        cones: Sequence[tuple[str, float]],
        *,
        turns: Sequence[int] = (),
        isa: str | None = None,
    ) -> None:
        self._handle = None
        self.n, self.P, self.A, self.cones, self.m, self.isa, arguments = checked(n, P, A, cones, isa)
        self.turns = tuple(int(t) for t in turns)
        self._library, at = library.require(), library.address
        kinds = arguments[-4]
        which = np.flatnonzero(kinds == PSD)
        flags = np.zeros(len(kinds) + 1, np.int8)
        if any(not 0 <= t < len(which) for t in self.turns):
            raise BuildError("no such PSD cone", where="turns", expected=f"indices below {len(which)}", got=repr(self.turns))
        flags[which[list(self.turns)]] = 1
        arguments = (*arguments[:-1], flags, arguments[-1])
        self._handle = self._library.lc_newton_new(*(at(v) if isinstance(v, np.ndarray) else v for v in arguments))
        if not self._handle:
            raise BuildError("the structure is malformed", where="Newton", got=library.reason())
        facts = np.zeros(5, np.int64)
        self._library.lc_newton_facts(self._handle, at(facts))
        self.factor_nnz, self.flops, self.order, self.lanes, self.turned = facts.tolist()

    @property
    def handle(self) -> int:
        """What the kernels know the structure by."""
        return self._handle or 0

    def refine(
        self,
        P: np.ndarray,
        q: np.ndarray,
        A: np.ndarray,
        b: np.ndarray,
        x: np.ndarray,
        v: np.ndarray,
        *,
        steps: int = 12,
        target: float = 1e-13,
        eps: float = 1e-7,
        threads: int = 1,
    ) -> Refined:
        """Newton steps, each instance on its own and only while its ||F|| falls, and the linearisation at the points reached.

        Args:
            P: Entries of P, (B, nnz P) or (1, nnz P).
            q: (B, n) or (1, n).
            A: Entries of A, (B, nnz A) or (1, nnz A).
            b: (B, m) or (1, m).
            x: Points to start from, (B, n).
            v: y - s, (B, m).
            steps: Most steps; 0 only evaluates and linearises.
            target: Relative residual at which an instance stops.
            eps: Static regularisation of the factors; solutions are refined against the system without it.
            threads: Threads that share the packs.
        """
        x, v = np.array(x, dtype=np.float64, order="C"), np.array(v, dtype=np.float64, order="C")
        batch = len(x)
        widths = {"P": self.P[0].size, "q": self.n, "A": self.A[0].size, "b": self.m, "x": self.n, "v": self.m}
        data = [np.ascontiguousarray(k, dtype=np.float64) for k in (P, q, A, b)]
        for (name, width), k in zip(widths.items(), [*data, x, v], strict=True):
            if k.ndim != 2 or k.shape[1] != width or (k.shape[0] != batch and (k.shape[0] != 1 or name in "xv")):
                raise ShapeError("wrong shape", where=name, expected=f"({batch}, {width})", got=str(k.shape))
        y, F_x, F_y = np.empty_like(v), np.empty_like(x), np.empty_like(v)
        norm, taken, pivots, reach = np.empty(batch), np.zeros(batch, np.int32), np.empty(batch), np.empty(batch)
        suspect = np.zeros(batch, np.bool_)
        handle = None
        if batch:
            at = library.address
            operands = [part for k in data for part in (at(k), k.shape[1] if k.shape[0] > 1 else 0)]
            handle = self._library.lc_newton_refine(
                *(self._handle, batch, *operands, *(at(k) for k in (x, v, y, F_x, F_y, norm, taken, pivots, reach, suspect))),
                *(int(steps), float(target), float(eps), int(threads)),
            )
            if not handle:
                raise MemoryError(library.reason())
        return Refined(x, v, y, F_x, F_y, norm, taken, suspect, Linearization(self, handle, batch, pivots, reach))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.n, self.P, self.A, self.cones, self.turns)

    def __repr__(self) -> str:
        return f"Newton(n={self.n}, m={self.m}, order={self.order}, factor={self.factor_nnz}, flops={self.flops}, isa={self.isa!r})"

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.lc_newton_free(self._handle)
            self._handle = None


def _rebuild(n: int, P: Any, A: Any, cones: Any, turns: Any) -> Newton:
    return Newton(n, P, A, cones, turns=turns)


class Linearization:
    """Factors of the residual map's symmetric system at a batch of points; every tangent and adjoint is one triangular solve.

    Attributes:
        batch: Number of instances.
        pivots: (B,) smallest pivot of the scaled matrix, see `Factor`.
        reach: (B,) relative residual that a fixed right-hand side without structure reaches in three refinements; above 1e-8 the
            system is singular up to the regularisation.
    """

    def __init__(self, newton: Newton, handle: Any, batch: int, pivots: np.ndarray, reach: np.ndarray) -> None:
        self._handle, self.newton, self.batch, self.pivots, self.reach = handle, newton, batch, pivots, reach

    @property
    def handle(self) -> int:
        """What the kernels know the factors by."""
        return self._handle or 0

    def solve(
        self, r_x: np.ndarray, h: np.ndarray, *, refine: int = 8, tol: float = 1e-14, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Solve [[P, A'S], [S A, -(I - D)]] [u; sigma] = [r_x; S h], t = S sigma, S = D^(1/2).

        Args:
            r_x: (B, n).
            h: (B, m).
            refine: Most refinement steps.
            tol: Relative residual at which refinement stops.
            threads: Threads that share the packs.

        Returns:
            u (B, n), t (B, m), and the relative residuals (B,).
        """
        n, m = self.newton.n, self.newton.m
        r_x, h = np.ascontiguousarray(r_x, dtype=np.float64), np.ascontiguousarray(h, dtype=np.float64)
        if r_x.shape != (self.batch, n) or h.shape != (self.batch, m):
            raise ShapeError(
                "wrong right-hand side", where="r_x, h", expected=f"({self.batch}, {n}), ({self.batch}, {m})", got=f"{r_x.shape}, {h.shape}"
            )
        u, t, residual = np.empty_like(r_x), np.empty_like(h), np.empty(self.batch)
        if self.batch:
            at = library.address
            arrays = (at(k) for k in (r_x, h, u, t, residual))
            if self.newton._library.lc_linearization_solve(self._handle, *arrays, int(refine), float(tol), int(threads)):
                raise MemoryError(library.reason())
        return u, t, residual

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.newton._library.lc_linearization_free(self._handle)
            self._handle = None
