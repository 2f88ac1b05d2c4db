"""The nonlinear least-squares program that every front end lowers to.

    minimise over x    1/2 sum over blocks, sum over factors e of    rho( || W_e r(x_e; theta_e) ||^2 )
    subject to         lower <= x <= upper       (Euclidean variables only)

A *block* is one residual function r: (d values) -> (m,), applied to `count` *factors*: factor e reads its own elements of the variables
(`index`) and its own rows of the arguments. Everything here is structure, made once; the numbers come at run time.

What a front end must provide
-----------------------------
1. `variables`: one `VariableSpec` each; its value is an array of `shape`, and its tangent the concatenation of its elements' tangents
   in C order (for Euclidean variables simply the value, flattened in C order). The unknown of the program is the concatenation of the
   tangents of all variables, in order; columns below are numbered in it.
2. `parameters`: `ParameterSpec(name, shape)` in call order.
3. `blocks`: one `Block` each, with

       residual(xp, *variables, *arguments) -> (m,)

   in array functions (`layercompiler.arrays`), for ONE factor of ONE instance: batches and factors are mapped over by the runtime. Each
   variable arrives whole with its `shape` (index None) or as one element (index given), each argument whole or as one row. It must be
   smooth, free of side effects, and must not look at numbers (no `if x > 0`). A function written in one framework ignores `xp`, and
   the program then names it in `framework`.
4. For a block of many rows in one factor (`count` None): `sparsity`, the pattern of its Jacobian with its colouring; the runtime
   evaluates one derivative per colour. Without it the Jacobian is dense. The pattern must hold every nonzero for all values of x and theta.
   Rows of one block share one robust loss of the whole norm; losses of single rows need `separable=True`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from layercompiler.errors import BuildError
from layercompiler.manifolds import Manifold
from layercompiler.programs.cone import ParameterSpec
from layercompiler.programs.robust import Robust

__all__ = ["Argument", "Block", "LeastSquaresProgram", "ParameterSpec", "Sparsity", "VariableSpec", "Weight"]


@dataclass(frozen=True)
class VariableSpec:
    """One variable: an array of elements of a manifold.

    Attributes:
        name: The user's name.
        manifold: Of each element. A Euclidean variable of shape (n,) or () is n (or one) elements of `Vectors(1)`; of shape (n, k, ...)
            n elements of `Vectors(k * ...)`.
        shape: Shape of the value: (elements, ambient) or (ambient,) for groups.
        init: Default start, of `shape`.
        fixed: (elements,) bool, True for elements that stay at their start; None for none.
        lower: Lower bounds, of `shape`; Euclidean variables only. None for none.
        upper: Upper bounds.
    """

    name: str
    manifold: Manifold
    shape: tuple[int, ...]
    init: np.ndarray = field(repr=False)
    fixed: np.ndarray | None = field(default=None, repr=False)
    lower: np.ndarray | None = field(default=None, repr=False)
    upper: np.ndarray | None = field(default=None, repr=False)

    @cached_property
    def size(self) -> int:
        """Numbers that store the value."""
        return math.prod(self.shape)

    @cached_property
    def elements(self) -> int:
        """Number of elements."""
        return self.size // self.manifold.ambient if self.manifold.ambient else 0

    @cached_property
    def element_shape(self) -> tuple[int, ...]:
        """Shape in which a residual sees one element."""
        return (self.manifold.ambient,) if self.manifold.name != "euclidean" else self.shape[1:]

    @cached_property
    def dof(self) -> int:
        """Length of the tangent of the whole variable."""
        return self.elements * self.manifold.dof


@dataclass(frozen=True)
class Argument:
    """What a residual is given besides variables: a parameter or a constant.

    Attributes:
        parameter: Position in the program's parameters, or None for a constant.
        value: The constant.
        mapped: Whether factor e gets row e of the leading axis, instead of the whole.
    """

    parameter: int | None = None
    value: np.ndarray | None = field(default=None, repr=False)
    mapped: bool = False


@dataclass(frozen=True)
class Weight:
    """W of || W r ||^2: the square root of the information matrix.

    Attributes:
        kind: "scale" (a number), "diagonal" (m,) or "full" (m, m), for each factor.
        argument: Its numbers.
    """

    kind: str
    argument: Argument


@dataclass(frozen=True)
class Sparsity:
    """Nonzeros of the Jacobian of a block of one factor.

    Attributes:
        rows: Row of each nonzero, (nnz,) integers.
        cols: Column of each nonzero in the concatenated tangents of the block's own variables (`on`, in order), (nnz,).
        colors: (columns,) colour of each column: two columns of one colour share no row. None: the runtime colours.
    """

    rows: np.ndarray = field(repr=False)
    cols: np.ndarray = field(repr=False)
    colors: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Block:
    """One kind of factor.

    Attributes:
        name: For reports and messages.
        residual: See the module.
        on: Positions of the variables it reads, in the order of its arguments; one may come twice.
        dim: m, the length of one residual.
        index: For each of `on`, the element that each factor reads, (count,) integers, or None for the whole variable.
        count: Number of factors; None for a single one, whose arguments have no leading axis.
        arguments: What the residual is given after the variables.
        weight: W, or None for the identity.
        robust: rho, or None for the square. Its `radius` is ignored here: see `radius`.
        radius: Of the robust loss: shape () or mapped.
        mass: Nonnegative factors (m,) of the losses of single rows, of separable blocks of one factor: sum_i mass_i rho(r_i^2). Unlike a
            weight of the residual it has a derivative where it is zero.
        separable: True where the robust loss (and the square) is taken of every row by itself: sum_i rho(r_i^2).
        jacobian: Analytic Jacobian, `jacobian(xp, *variables, *arguments)`: a tuple of (m, dof of the variable's part), one per `on`.
        sparsity: Of the Jacobian, for blocks of one factor.
    """

    name: str
    residual: Callable[..., Any]
    on: tuple[int, ...]
    dim: int
    index: tuple[np.ndarray | None, ...] = field(default=(), repr=False)
    count: int | None = None
    arguments: tuple[Argument, ...] = ()
    weight: Weight | None = None
    robust: Robust | None = None
    radius: Argument | None = None
    separable: bool = False
    jacobian: Callable[..., Any] | None = None
    sparsity: Sparsity | None = None
    mass: Argument | None = None

    def __post_init__(self) -> None:
        if not self.index:
            object.__setattr__(self, "index", (None,) * len(self.on))
        if len(self.index) != len(self.on):
            raise BuildError("one index per variable", where=f"block '{self.name}'", expected=str(len(self.on)), got=str(len(self.index)))
        if (self.robust is None) != (self.radius is None):
            raise BuildError("a robust loss and its radius come together", where=f"block '{self.name}'")
        if self.sparsity is not None and self.count is not None:
            raise BuildError("sparsity is for blocks of one factor", where=f"block '{self.name}'", got=f"{self.count} factors")
        if self.mass is not None and not (self.separable and self.count is None):
            raise BuildError("factors of single rows are for separable blocks of one factor", where=f"block '{self.name}'")

    @property
    def extra(self) -> tuple[Argument, ...]:
        """What follows the arguments among the inputs of a factor: weight, mass and radius, those that are there."""
        found = (None if self.weight is None else self.weight.argument, self.mass, self.radius)
        return tuple(a for a in found if a is not None)


@dataclass(frozen=True)
class LeastSquaresProgram:
    """Variables, parameters and blocks; immutable.

    Attributes:
        variables: The unknowns.
        parameters: What the layer is called with.
        blocks: The terms of the objective.
        outputs: Names of the variables that the layer returns, in order.
        framework: The framework that the residuals are written in; None for array functions, which serve all.
        constant: Added to the optimal value (front ends that split constants off).
        scale: Factor of the optimal value: 2 where the user wrote sum_squares, without the half; negative for a maximisation.
    """

    variables: tuple[VariableSpec, ...]
    parameters: tuple[ParameterSpec, ...]
    blocks: tuple[Block, ...]
    outputs: tuple[str, ...]
    framework: str | None = None
    constant: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        names = [v.name for v in self.variables] + [p.name for p in self.parameters]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise BuildError("names of variables and parameters must differ", where=", ".join(twice))
        unknown = [n for n in self.outputs if n not in self.variable_names]
        if unknown:
            raise BuildError("unknown outputs", got=str(unknown), expected=f"some of {list(self.variable_names)}")
        for block in self.blocks:
            _check(block, self)

    @cached_property
    def variable_names(self) -> tuple[str, ...]:
        """Names of the variables."""
        return tuple(v.name for v in self.variables)

    @cached_property
    def offsets(self) -> np.ndarray:
        """(variables + 1,) where the tangent of each variable starts in the unknown, fixed elements included."""
        return np.concatenate([[0], np.cumsum([v.dof for v in self.variables], dtype=int)])

    @cached_property
    def dof(self) -> int:
        """Length of the unknown."""
        return int(self.offsets[-1])

    @cached_property
    def ambient_offsets(self) -> np.ndarray:
        """(variables + 1,) where the value of each variable starts in the vector of all values."""
        return np.concatenate([[0], np.cumsum([v.size for v in self.variables], dtype=int)])

    @cached_property
    def free(self) -> np.ndarray:
        """(dof,) bool: False for the columns of fixed elements."""
        parts = [
            np.ones(v.dof, bool) if v.fixed is None else np.repeat(~np.asarray(v.fixed, bool).reshape(-1), v.manifold.dof)
            for v in self.variables
        ]
        return np.concatenate(parts) if parts else np.zeros(0, bool)


def columns(program: LeastSquaresProgram, block: Block) -> np.ndarray:
    """(count or 1, k) columns of the unknown that each factor reads, in the order of the block's concatenated tangents."""
    parts = []
    for position, index in zip(block.on, block.index, strict=True):
        spec, start = program.variables[position], program.offsets[position]
        if index is None:
            parts.append(np.broadcast_to(start + np.arange(spec.dof), (block.count or 1, spec.dof)))
        else:
            d = spec.manifold.dof
            parts.append(start + np.asarray(index)[:, None] * d + np.arange(d))
    return np.concatenate(parts, axis=1)


def _check(block: Block, program: LeastSquaresProgram) -> None:
    where = f"block '{block.name}'"
    for position, index in zip(block.on, block.index, strict=True):
        if not 0 <= position < len(program.variables):
            raise BuildError("no such variable", where=where, got=str(position))
        if index is None:
            continue
        elements, index = program.variables[position].elements, np.asarray(index)
        if index.shape != (block.count,) or index.dtype.kind not in "iu":
            raise BuildError("an index has one whole number per factor", where=where, expected=f"({block.count},)", got=str(index.shape))
        if index.size and (index.min() < 0 or index.max() >= elements):
            name = program.variables[position].name
            raise BuildError(
                "an index is out of range",
                where=f"{where}, variable '{name}'",
                expected=f"0 to {elements - 1}",
                got=f"{index.min()} to {index.max()}",
            )
    for argument in (*block.arguments, *block.extra):
        shape = program.parameters[argument.parameter].shape if argument.parameter is not None else np.asarray(argument.value).shape
        if argument.mapped and (not shape or shape[0] != block.count):
            name = program.parameters[argument.parameter].name if argument.parameter is not None else "a constant"
            raise BuildError(
                "an argument needs one row per factor", where=f"{where}, '{name}'", expected=f"({block.count}, ...)", got=str(shape)
            )
