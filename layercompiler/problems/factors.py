"""Least squares written as variables and residual functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from layercompiler import arrays
from layercompiler.errors import BuildError, NotAProblemError, OptionError, ParameterMismatchError, ShapeError
from layercompiler.manifolds import SE2 as MOTION2
from layercompiler.manifolds import SE3 as MOTION3
from layercompiler.manifolds import SO2 as ROTATION2
from layercompiler.manifolds import SO3 as ROTATION3
from layercompiler.manifolds import Element, Group, Vectors
from layercompiler.programs.least_squares import Argument, Block, LeastSquaresProgram, ParameterSpec, VariableSpec, Weight
from layercompiler.programs.robust import Robust

Names = str | Sequence[Any]


@dataclass(frozen=True)
class Variable:
    """A declared unknown (or, among the parameters, a value of that kind).

    Attributes:
        group: The group of its elements, or None for Euclidean ones.
        shape: Shape of a value.
        init: Default start, of `shape`; None for zeros or identities.
        fixed: True, or the elements (indices or a mask) that keep their start.
        lower: Bounds of Euclidean variables, broadcast to `shape`.
        upper: See `lower`.
    """

    group: Group | None
    shape: tuple[int, ...]
    init: Any = field(default=None, repr=False)
    fixed: Any = None
    lower: Any = None
    upper: Any = None


def Euclidean(*shape: int, init: Any = None, fixed: Any = None, lower: Any = None, upper: Any = None) -> Variable:
    """A vector or an array of real numbers; factors with an index read rows of its first axis.

    Args:
        *shape: Its shape; none for a number.
        init: Default start.
        fixed: True, or rows that keep their start.
        lower: Bounds, broadcast to the shape; the start is clipped to them.
        upper: See `lower`.
    """
    return Variable(None, tuple(shape), init, fixed, lower, upper)


def SO2(count: int | None = None, *, init: Any = None, fixed: Any = None) -> Variable:
    """Rotations of the plane, (count, 2) or (2,): (cos, sin)."""
    return _declare(ROTATION2, count, init, fixed)


def SE2(count: int | None = None, *, init: Any = None, fixed: Any = None) -> Variable:
    """Rigid motions of the plane, (count, 4) or (4,): (cos, sin, x, y)."""
    return _declare(MOTION2, count, init, fixed)


def SO3(count: int | None = None, *, init: Any = None, fixed: Any = None) -> Variable:
    """Rotations of space, (count, 4) or (4,): unit quaternions (w, x, y, z)."""
    return _declare(ROTATION3, count, init, fixed)


def SE3(count: int | None = None, *, init: Any = None, fixed: Any = None) -> Variable:
    """Rigid motions of space, (count, 7) or (7,): unit quaternion (w, x, y, z), then the translation."""
    return _declare(MOTION3, count, init, fixed)


def _declare(group: Group, count: int | None, init: Any, fixed: Any) -> Variable:
    return Variable(group, (group.ambient,) if count is None else (count, group.ambient), init, fixed)


@dataclass(frozen=True)
class Scale:
    """A weight of one number per factor: a parameter's name or an array, shape () or (factors,)."""

    value: Any


@dataclass(frozen=True)
class Diagonal:
    """A weight of one number per row of the residual: shape (m,) or (factors, m)."""

    value: Any


@dataclass(frozen=True)
class Full:
    """A square root of an information matrix: shape (m, m) or (factors, m, m)."""

    value: Any


@dataclass(frozen=True)
class Factor:
    """See `factor`."""

    residual: Callable[..., Any]
    on: tuple[str, ...]
    index: tuple[np.ndarray | None, ...]
    data: tuple[Any, ...]
    shared: tuple[Any, ...]
    weight: Any
    robust: Robust | None
    jacobian: Callable[..., Any] | None
    name: str


def factor(
    residual: Callable[..., Any],
    on: Names,
    *,
    index: Any = None,
    data: Names = (),
    shared: Names = (),
    weight: Any = None,
    robust: Robust | None = None,
    jacobian: Callable[..., Any] | None = None,
    name: str | None = None,
) -> Factor:
    """One kind of term, 1/2 sum over factors of rho(||W r||^2).

        lc.factor(lambda a, b, z: z.local(a.between(b)), on=("X", "X"), index=edges, data="Z", weight="w", robust=lc.Huber("radius"))

    Args:
        residual: r(*variables, *data, *shared) -> (m,), for ONE factor: smooth, without side effects, and without looking at numbers;
            factors and batches are mapped over. In the framework of the layer, or, where its first argument is called `xp`, in
            array functions for all frameworks. Elements of groups arrive as `layercompiler.manifolds.Element`.
        on: Names of the variables it reads; one may come twice.
        index: Elements that each factor reads: integers (factors, len(on)), or (factors,) for one variable, or a tuple with one array per
            variable, None where the factor reads the whole variable. None: a single factor reads the variables whole.
        data: Names of parameters, or arrays, of which factor e gets row e (with an index; without, the whole).
        shared: Names of parameters, or arrays, that every factor gets whole.
        weight: W: `Scale`, `Diagonal` or `Full` of a parameter's name or an array. A bare name or array is taken for the kind that
            its shape tells.
        robust: A robust loss, such as `Huber(1.0)` or `Cauchy("radius")`.
        jacobian: Analytic derivative, with the arguments of the residual: a tuple with (m, dof) per variable, along tangents. It is
            held against automatic derivatives at every solution: where it is wrong an error is raised, and under jit the instance has
            failed.
        name: For messages; the function's own by default.

    Raises:
        OptionError: An argument is malformed.
    """
    names = (on,) if isinstance(on, str) else tuple(on)
    label = name or getattr(residual, "__name__", type(residual).__name__)
    if not callable(residual) or not names:
        raise OptionError("a factor needs a residual function and the variables it reads", where=f"factor '{label}'")
    if robust is not None and not isinstance(robust, Robust):
        raise OptionError("not a robust loss", where=f"factor '{label}'", expected="such as Huber(1.0)", got=repr(robust))
    return Factor(residual, names, _index(index, len(names), label), _tuple(data), _tuple(shared), weight, robust, jacobian, label)


def _tuple(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, (tuple, list)) else (values,)


def _index(index: Any, count: int, label: str) -> tuple[np.ndarray | None, ...]:
    if index is None:
        return (None,) * count
    if isinstance(index, tuple):
        columns = tuple(None if i is None else np.asarray(i) for i in index)
    else:
        whole = np.asarray(index)
        whole = whole[:, None] if whole.ndim == 1 else whole
        if whole.ndim != 2:
            raise OptionError("an index is (factors, variables)", where=f"factor '{label}'", got=str(whole.shape))
        columns = tuple(np.ascontiguousarray(whole[:, i]) for i in range(whole.shape[1]))
    lengths = {c.shape for c in columns if c is not None}
    if len(columns) != count or len(lengths) != 1 or len(next(iter(lengths))) != 1:
        raise OptionError(
            "an index names one element of each variable",
            where=f"factor '{label}'",
            expected=f"(factors, {count})",
            got=str([None if c is None else c.shape for c in columns]),
        )
    return columns


@dataclass(frozen=True)
class LeastSquares:
    """A nonlinear least-squares problem: minimise 1/2 sum rho(||W r||^2) over the variables.

        problem = lc.LeastSquares(
            variables={"X": lc.SE2(100, fixed=[0])},
            factors=[lc.factor(between, on=("X", "X"), index=edges, data="Z", weight=lc.Scale("w"))],
            parameters={"Z": lc.SE2(len(edges)), "w": (len(edges),)},
        )
        layer = lc.export(problem, "torch")
        (X,) = layer(Z, w, init={"X": X0})

    Args:
        variables: Unknowns by name: `Euclidean`, `SO2`, `SE2`, `SO3`, `SE3`.
        factors: Terms, made by `factor`.
        parameters: What the layer is called with, in order: a shape each, or a declaration such as `SE2(n)` for elements of groups.
        outputs: Names of the variables that the layer returns; all by default.

    Raises:
        BuildError: Names or shapes do not fit.
    """

    variables: Mapping[str, Variable]
    factors: Sequence[Factor]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.variables or not self.factors:
            raise NotAProblemError("a least-squares problem has variables and factors", got=f"{len(self.variables)}, {len(self.factors)}")
        for name, v in self.variables.items():
            if not isinstance(v, Variable):
                raise NotAProblemError(
                    "not a variable", where=f"variable '{name}'", expected="lc.Euclidean(...), lc.SE3(...), ...", got=repr(v)
                )
        for f in self.factors:
            if not isinstance(f, Factor):
                raise NotAProblemError("not a factor", expected="lc.factor(...)", got=repr(f))
            for name in f.on:
                if name not in self.variables:
                    raise ParameterMismatchError(
                        "a factor reads an unknown variable",
                        where=f"factor '{f.name}'",
                        expected=f"some of {list(self.variables)}",
                        got=name,
                    )

    def lower(self, framework: str, names: Sequence[str] | None = None) -> LeastSquaresProgram:
        """The program, its residuals ready for a framework."""
        xp = arrays.get(framework)
        variables = tuple(_variable(n, v) for n, v in self.variables.items())
        declared = {n: p if isinstance(p, Variable) else Variable(None, tuple(int(k) for k in p)) for n, p in self.parameters.items()}
        specs = tuple(ParameterSpec(n, p.shape) for n, p in declared.items())
        blocks = tuple(_Lowering(self, f, declared, variables, xp).block() for f in self.factors)
        outputs = tuple(names or self.outputs or self.variables)
        anywhere = all(_in_arrays(f.residual) for f in self.factors)
        return LeastSquaresProgram(variables, specs, blocks, outputs, None if anywhere else framework)


def _variable(name: str, v: Variable) -> VariableSpec:
    manifold = v.group or Vectors(int(np.prod(v.shape[1:], dtype=int)))
    elements = int(np.prod(v.shape, dtype=int)) // max(manifold.ambient, 1)
    init = np.broadcast_to(manifold.identity() if v.group else 0.0, v.shape) if v.init is None else np.asarray(v.init, float)
    if init.shape != v.shape:
        raise ShapeError("a start has the shape of its variable", where=f"variable '{name}'", expected=str(v.shape), got=str(init.shape))
    fixed = None
    if v.fixed is not None and v.fixed is not False:
        fixed = np.zeros(elements, bool)
        fixed[slice(None) if v.fixed is True else np.asarray(v.fixed)] = True
    lower, upper = (None if b is None else np.broadcast_to(np.asarray(b, float), v.shape) for b in (v.lower, v.upper))
    return VariableSpec(name, manifold, v.shape, np.array(init), fixed, lower, upper)


class _Lowering:
    """One factor on its way to a block."""

    def __init__(
        self, problem: LeastSquares, f: Factor, declared: dict[str, Variable], variables: tuple[VariableSpec, ...], xp: Any
    ) -> None:
        self.problem, self.f, self.declared, self.variables, self.xp = problem, f, declared, variables, xp
        self.where = f"factor '{f.name}'"
        self.count = next((len(i) for i in f.index if i is not None), None)
        self.positions = tuple(list(problem.variables).index(n) for n in f.on)
        self.parameters = list(declared)

    def block(self) -> Block:
        f = self.f
        arguments = [self.argument(d, self.count is not None) for d in f.data] + [self.argument(d, False) for d in f.shared]
        groups = [self.variables[p].manifold for p in self.positions] + [self.kind(d) for d in (*f.data, *f.shared)]
        function = _wrapped(f.residual, groups)
        sample = self.sample(arguments)
        try:
            value = function(self.xp, *sample)
            dim = int(np.prod(tuple(value.shape), dtype=int))
        except Exception as error:
            raise BuildError(
                f"the residual failed at the start values: {type(error).__name__}: {error}",
                where=self.where,
                expected=f"arguments of shapes {[tuple(s.shape) for s in sample]}",
                mend="a residual takes one element of each variable, then its row of each of `data`, then `shared`",
            ) from error
        jacobian = None if f.jacobian is None else _wrapped(f.jacobian, groups)
        weight, radius = self.weight(dim), None
        if f.robust is not None:
            shape = self.shape(f.robust.radius)
            radius = self.argument(f.robust.radius, len(shape) == 1)
        return Block(
            f.name, lambda xp, *a: xp.reshape(function(xp, *a), (dim,)), self.positions, dim, f.index, self.count, tuple(arguments),
            weight, f.robust, radius, jacobian=jacobian,
        )  # fmt: skip

    def shape(self, value: Any) -> tuple[int, ...]:
        if not isinstance(value, str):
            return np.shape(value)
        if value not in self.declared:
            raise ParameterMismatchError(
                f"there is no parameter '{value}'",
                where=self.where,
                expected=f"some of {self.parameters}",
                mend="declare it in `parameters`",
            )
        return self.declared[value].shape

    def kind(self, value: Any) -> Any:
        return self.declared[value].group if isinstance(value, str) else None

    def argument(self, value: Any, mapped: bool) -> Argument:
        shape = self.shape(value)
        if mapped and (self.count is None or not shape or shape[0] != self.count):
            raise ShapeError("one row per factor", where=self.where, expected=f"({self.count}, ...)", got=str(shape))
        if isinstance(value, str):
            return Argument(self.parameters.index(value), None, mapped)
        return Argument(None, np.asarray(value, float) if np.asarray(value).dtype.kind == "f" else np.asarray(value), mapped)

    def weight(self, dim: int) -> Weight | None:
        value, count = self.f.weight, self.count
        if value is None:
            return None
        kind = {Scale: "scale", Diagonal: "diagonal", Full: "full"}.get(type(value))
        value = value.value if kind else value
        shape = self.shape(value)
        one = {"scale": (), "diagonal": (dim,), "full": (dim, dim)}
        fits = [
            (name, mapped)
            for name, s in one.items()
            for mapped in (False, True)
            if kind in (None, name) and shape == ((count, *s) if mapped else s) and not (mapped and count is None)
        ]
        if len(fits) != 1:
            raise ShapeError(
                "the weight is of no known kind" if not fits else "the weight may be of several kinds",
                where=self.where,
                expected=f"(), ({dim},) or ({dim}, {dim}), after ({count},) where factors differ",
                got=str(shape),
                mend="write lc.Scale(...), lc.Diagonal(...) or lc.Full(...) around it",
            )
        name, mapped = fits[0]
        return Weight(name, self.argument(value, mapped))

    def sample(self, arguments: Sequence[Argument]) -> list[Any]:
        out = []
        for p, index in zip(self.positions, self.f.index, strict=True):
            v = self.variables[p]
            x = v.init if index is None else v.init.reshape(v.elements, *v.element_shape)[0]
            out.append(self.xp.new(np.asarray(x, float)))
        for a in arguments:
            if a.parameter is None:
                x = np.asarray(a.value)
            else:
                spec = self.declared[self.parameters[a.parameter]]
                x = np.broadcast_to(spec.group.identity() if spec.group else 1.0, spec.shape)
            out.append(self.xp.new(x[0] if a.mapped else x))
        return out


def _in_arrays(function: Callable[..., Any]) -> bool:
    """Whether the function takes array functions as its first argument, `xp`."""
    try:
        return next(iter(inspect.signature(function).parameters), "") == "xp"
    except (TypeError, ValueError):
        return False


def _wrapped(function: Callable[..., Any], groups: Sequence[Any]) -> Callable[..., Any]:
    """A function of raw arrays around one of elements."""
    generic = _in_arrays(function)

    def call(xp: Any, *values: Any) -> Any:
        seen = [Element(g, xp, v) if isinstance(g, Group) else v for g, v in zip(groups, values, strict=True)]
        return function(xp, *seen) if generic else function(*seen)

    return call
