"""Least squares written as variables and residual functions."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from layercompiler import arrays
from layercompiler.errors import (
    BuildError,
    NotAProblemError,
    OptionError,
    ParameterMismatchError,
    ShapeError,
    UnsupportedResidualError,
)
from layercompiler.manifolds import Element, Group, Vectors
from layercompiler.problems.kinds import SE2, SE3, SO2, SO3, Euclidean, Kind, Variable
from layercompiler.programs.least_squares import Argument, Block, LeastSquaresProgram, ParameterSpec, VariableSpec, Weight
from layercompiler.programs.robust import Robust

__all__ = ["SE2", "SE3", "SO2", "SO3", "Diagonal", "Euclidean", "Factor", "Full", "Kind", "LeastSquares", "Scale", "Variable", "factor"]

Names = str | Sequence[Any]
# how the frameworks say that a function wanted the numbers of an array that it is mapped over
_NUMBERLESS = ("TracerBool", "TracerArray", "TracerInteger", "Concretization", "OperatorNotAllowedInGraph")
_SAID = ("data-dependent control flow", "Cannot access data pointer of Tensor", "symbolic tf.Tensor", "SymbolicTensor")


@dataclass(frozen=True)
class Scale:
    """A weight of one number per factor that is not negative: a parameter's name or an array, shape () or (factors,)."""

    value: Any


@dataclass(frozen=True)
class Diagonal:
    """A weight of one number per row of the residual: shape (m,) or (factors, m); their signs do not matter."""

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
        residual: r(*variables, *data, *shared) -> (m,), for ONE factor: smooth, without side effects, and without looking at numbers
            (`where` instead of `if`); factors and batches are mapped over. In the framework of the layer, or, where its first argument is
            called `xp`, in array functions for all frameworks. Elements of groups arrive as `layercompiler.manifolds.Element`.
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
        BuildError: Names or shapes do not fit, bounds leave nothing, or a start is no element of its group.
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
        for name, v in self.variables.items():
            _variable(name, v)

    def lower(self, framework: str, names: Sequence[str] | None = None) -> LeastSquaresProgram:
        """The program, its residuals ready for a framework."""
        xp = arrays.get(framework)
        variables = tuple(_variable(n, v) for n, v in self.variables.items())
        declared = {n: p if isinstance(p, Variable) else Variable(None, tuple(int(k) for k in p)) for n, p in self.parameters.items()}
        specs = tuple(ParameterSpec(n, p.shape, (p.group.name,) if p.group else ()) for n, p in declared.items())
        blocks = tuple(_Lowering(self, f, declared, variables, xp).block() for f in self.factors)
        outputs = tuple(names or self.outputs or self.variables)
        anywhere = all(_in_arrays(f.residual) for f in self.factors)
        return LeastSquaresProgram(variables, specs, blocks, outputs, None if anywhere else framework)


def _variable(name: str, v: Variable) -> VariableSpec:
    where = f"variable '{name}'"
    manifold = v.group or Vectors(int(np.prod(v.shape[1:], dtype=int)))
    elements = int(np.prod(v.shape, dtype=int)) // max(manifold.ambient, 1)
    init = np.broadcast_to(manifold.identity() if v.group else 0.0, v.shape) if v.init is None else np.asarray(v.init, float)
    if init.shape != v.shape:
        raise ShapeError("a start has the shape of its variable", where=where, expected=str(v.shape), got=str(init.shape))
    strange = manifold.invalid(arrays.get("numpy"), init.reshape(-1, manifold.ambient)) if v.group and init.size else np.zeros(0, bool)
    if strange.any():
        raise BuildError(
            f"the start holds numbers that are no elements of {manifold.name}",
            where=where,
            got=f"{int(strange.sum())} of {strange.size}",
            mend=f"make elements with lc.{manifold.name}.exp(...)",
        )
    fixed = None
    if v.fixed is not None and v.fixed is not False:
        fixed = np.zeros(elements, bool)
        try:
            fixed[slice(None) if v.fixed is True else np.asarray(v.fixed)] = True
        except IndexError:
            raise ShapeError(
                "`fixed` names elements that are not there", where=where, expected=f"elements 0 to {elements - 1}", got=str(v.fixed)
            ) from None
    return VariableSpec(name, manifold, v.shape, np.array(init), fixed, *_bounds(where, v))


def _bounds(where: str, v: Variable) -> tuple[np.ndarray | None, ...]:
    found = []
    for side, given, never in (("lower", v.lower, np.inf), ("upper", v.upper, -np.inf)):
        try:
            bound = None if given is None else np.broadcast_to(np.asarray(given, float), v.shape)
        except ValueError:
            raise ShapeError(
                f"the {side} bound does not broadcast", where=where, expected=str(v.shape), got=str(np.shape(cast(Any, given)))
            ) from None
        if bound is not None and (np.isnan(bound).any() or (bound == never).any()):
            raise BuildError(
                f"a {side} bound is NaN or leaves nothing", where=where, expected=f"numbers other than {never}", got=str(given)
            )
        found.append(bound)
    low, high = found
    if low is not None and high is not None and (low > high).any():
        i = tuple(int(k) for k in np.argwhere(low > high)[0])
        raise BuildError(
            "the bounds of a variable leave nothing",
            where=where + (f", entry {i}" if i else ""),
            expected="lower <= upper",
            got=f"lower {low[i]:g}, upper {high[i]:g}",
        )
    return low, high


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
        function = _wrapped(f.residual, groups, self.where)
        sample = self.sample(arguments)
        try:
            value = function(self.xp, *sample)
            dim = int(np.prod(tuple(value.shape), dtype=int))
            if self.xp.name == "torch":  # residuals that are spelled out for the kernels would keep numbers as constants
                _mapped(self.xp, function, sample)
        except BuildError:
            raise
        except Exception as error:
            raise BuildError(
                f"the residual failed at the start values: {type(error).__name__}: {error}",
                where=self.where,
                expected=f"arguments of shapes {[tuple(s.shape) for s in sample]}",
                mend="a residual takes one element of each variable, then its row of each of `data`, then `shared`",
            ) from error
        jacobian = None if f.jacobian is None else _wrapped(f.jacobian, groups, self.where)
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
        if name == "scale" and not isinstance(value, str) and not (np.asarray(value, float) >= 0).all():
            raise OptionError("a scale is not negative", where=self.where, expected="numbers >= 0", got=str(value))
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


def _wrapped(function: Callable[..., Any], groups: Sequence[Any], where: str) -> Callable[..., Any]:
    """A function of raw arrays around one of elements."""
    generic = _in_arrays(function)

    def call(xp: Any, *values: Any) -> Any:
        seen = [Element(g, xp, v) if isinstance(g, Group) else v for g, v in zip(groups, values, strict=True)]
        try:
            return function(xp, *seen) if generic else function(*seen)
        except Exception as error:
            if not _wants_numbers(error):
                raise
            raise UnsupportedResidualError(
                "a residual looks at the numbers of its arguments, which have none: it is mapped over factors and instances",
                where=where,
                expected="array functions only: no `if`, `while`, float(), .item() or numpy of an argument",
                got=f"{type(error).__name__}",
                mend="write `xp.where(x > 0, a, b)` (torch.where, jax.numpy.where, tf.where) in place of `if x > 0`",
            ) from error

    return call


def _mapped(xp: Any, function: Callable[..., Any], sample: Sequence[Any]) -> None:
    """Raise where a function looks at numbers; what else goes wrong here is left to those who know more."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            xp.vmap(lambda *values: function(xp, *values))(*(s[None] for s in sample))
    except UnsupportedResidualError:
        raise
    except Exception:
        return


def _wants_numbers(error: Exception) -> bool:
    said = str(error)
    return any(n in type(error).__name__ for n in _NUMBERLESS) or any(s in said for s in _SAID)
