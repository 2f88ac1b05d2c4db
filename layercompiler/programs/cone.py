"""The quadratic cone program, its data for a batch, and what is needed to recover the user's outputs.

Standard form, used everywhere in the package:

    minimise    1/2 x'Px + q'x + d
    subject to  Ax + s = b,  s in K,            dual  y in K*,  Px + A'y + q = 0

P is symmetric and its upper triangle is stored. Rows of A follow the cone order zero, nonnegative, second-order, PSD
(svec: column-major lower triangle, off-diagonals times sqrt 2), exponential, power.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from layercompiler.cones import Product
from layercompiler.programs.affine import AffineMap, Channel
from layercompiler.programs.pattern import Pattern

MATRIX_KINDS = ("QP", "two-sided QP")  # of programs written as matrices


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter as the user declared it: name, shape, and the attributes its values must satisfy."""

    name: str
    shape: tuple[int, ...]
    attributes: tuple[str, ...] = ()

    @cached_property
    def size(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class OutputSpec:
    """One output of a layer, an affine image of the primal or the dual point, or the optimal value.

    Attributes:
        name: The user's name.
        shape: Shape of one instance.
        source: "primal" (from x), "dual" (from y) or "value" (the objective).
        rows: With `cols` and `coefs`, COO entries of the map from the source vector to the output, C order.
        cols: See `rows`.
        coefs: See `rows`.
        exponential: True where the output is exp of that map (geometric programs).
        sign: -1 where a maximisation was turned into a minimisation (the value).
    """

    name: str
    shape: tuple[int, ...]
    source: str
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.intp), repr=False)
    cols: np.ndarray = field(default_factory=lambda: np.zeros(0, np.intp), repr=False)
    coefs: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    exponential: bool = False
    sign: float = 1.0

    @cached_property
    def size(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    @cached_property
    def _gather(self) -> np.ndarray | None:
        """Columns in row order where the map is one plain gather, else None."""
        if len(self.rows) == self.size and np.array_equal(np.sort(self.rows), np.arange(self.size)):
            return self.cols[np.argsort(self.rows)]
        return None

    @cached_property
    def _gather_coefs(self) -> np.ndarray | None:
        ordered = self.coefs[np.argsort(self.rows)]
        return None if np.all(ordered == 1.0) else ordered

    def pick(self, vector: np.ndarray) -> np.ndarray:
        """Apply the linear map: (B, n or m) to (B, size)."""
        if self._gather is not None:
            picked = vector[:, self._gather]
            return picked if self._gather_coefs is None else picked * self._gather_coefs
        out = np.zeros((len(vector), self.size))
        np.add.at(out.T, self.rows, (vector[:, self.cols] * self.coefs).T)
        return out

    def spread(self, gradient: np.ndarray, out: np.ndarray) -> None:
        """Add the transpose of `pick` applied to `gradient` (B, size) to `out` (B, n or m)."""
        np.add.at(out.T, self.cols, (gradient[:, self.rows] * self.coefs).T)


@dataclass(frozen=True)
class Data:
    """Numbers of a batch of cone programs; q has leading size B, the others B, or 1 where they are shared by the batch."""

    P: np.ndarray
    q: np.ndarray
    d: np.ndarray
    A: np.ndarray
    b: np.ndarray

    @property
    def batch(self) -> int:
        """Number of instances."""
        return len(self.q)

    def take(self, index: np.ndarray) -> Data:
        """The instances `index`, shared arrays kept shared."""
        P, d, A, b = (a if len(a) == 1 else a[index] for a in (self.P, self.d, self.A, self.b))
        return Data(P, self.q[index], d, A, b)

    def one(self, i: int) -> tuple[np.ndarray, ...]:
        """Arrays (P, q, d, A, b) of instance `i`, without the batch axis."""
        return tuple(a[0] if len(a) == 1 else a[i] for a in (self.P, self.q, self.d, self.A, self.b))


@dataclass(frozen=True)
class Structure:
    """Pattern of a cone program: everything but the numbers.

    Attributes:
        n: Number of variables.
        P_rows: Rows of the upper triangle of P, with `P_cols`; row <= column.
        P_cols: See `P_rows`.
        A_rows: Rows of A, with `A_cols`, sorted by row and then by column.
        A_cols: See `A_rows`.
        cones: The product cone, m rows.
    """

    n: int
    P_rows: np.ndarray
    P_cols: np.ndarray
    A_rows: np.ndarray
    A_cols: np.ndarray
    cones: Product

    @property
    def m(self) -> int:
        """Number of rows of A."""
        return self.cones.m

    @cached_property
    def A_indptr(self) -> np.ndarray:
        """CSR row pointer of A."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.A_rows, minlength=self.m))]).astype(np.intp)

    @cached_property
    def A_csc(self) -> tuple[np.ndarray, np.ndarray]:
        """(order, indptr): the permutation of A's entries to column order, and the column pointer."""
        order = np.lexsort((self.A_rows, self.A_cols))
        return order, np.concatenate([[0], np.cumsum(np.bincount(self.A_cols, minlength=self.n))]).astype(np.intp)

    @cached_property
    def P_csc(self) -> tuple[np.ndarray, np.ndarray]:
        """(order, indptr) of the upper triangle of P by column."""
        order = np.lexsort((self.P_rows, self.P_cols))
        return order, np.concatenate([[0], np.cumsum(np.bincount(self.P_cols, minlength=self.n))]).astype(np.intp)

    @cached_property
    def P_off(self) -> np.ndarray:
        """Entries of the upper triangle that lie off the diagonal."""
        return np.flatnonzero(self.P_rows != self.P_cols)

    @cached_property
    def P_pattern(self) -> Pattern:
        """Pattern of P with both triangles; `P_mirror` says which stored entry each of its entries reads."""
        off = self.P_off
        rows, cols = np.concatenate([self.P_rows, self.P_cols[off]]), np.concatenate([self.P_cols, self.P_rows[off]])
        return Pattern(rows, cols, (self.n, self.n))

    @cached_property
    def P_mirror(self) -> np.ndarray:
        """See `P_pattern`."""
        return np.concatenate([np.arange(len(self.P_rows)), self.P_off])

    @cached_property
    def A_pattern(self) -> Pattern:
        """Pattern of A."""
        return Pattern(self.A_rows, self.A_cols, (self.m, self.n))


@dataclass(frozen=True)
class ConeProgram:
    """A parametrised cone program: a pattern, and the affine maps from parameters to its numbers.

    Attributes:
        structure: The pattern.
        P: Map to the entries of P; likewise `q`, `d`, `A`, `b`.
        parameters: The user's parameters in call order.
        channels: What the maps read, see `Channel`.
        outputs: What the layer returns, in order.
        kind: "DCP" or "DGP".
        names: Labels of the constraints, for messages.
        value: How the optimal value is recovered.
    """

    structure: Structure
    P: AffineMap
    q: AffineMap
    d: AffineMap
    A: AffineMap
    b: AffineMap
    parameters: tuple[ParameterSpec, ...]
    channels: tuple[Channel, ...]
    outputs: tuple[OutputSpec, ...]
    value: OutputSpec
    kind: str = "DCP"

    @cached_property
    def plain(self) -> bool:
        """Whether the channels are the parameters themselves, in order."""
        return [(c.parameter, c.log) for c in self.channels] == [(k, False) for k in range(len(self.parameters))]

    @property
    def maps(self) -> tuple[AffineMap, ...]:
        """(P, q, d, A, b)."""
        return self.P, self.q, self.d, self.A, self.b

    def bind(self, thetas: Sequence[np.ndarray], batch: int) -> Data:
        """Numbers of a batch for channel values (1 or batch, size)."""
        P, q, d, A, b = (m(thetas) for m in self.maps)
        return Data(P, q if len(q) == batch else np.broadcast_to(q, (batch, q.shape[1])), d, A, b)
