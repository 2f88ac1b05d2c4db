"""What every framework brings: the array API standard by name, and the transformations that derivative rules are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

Function = Callable[..., Any]


class UnspelledError(Exception):
    """A function has no form in scalars and stays with the framework; never seen by users."""


class Implicit(Protocol):
    """A function y(args) that solves residual(y, *args) = 0: what `Arrays.implicit` needs to know of it."""

    @property
    def own(self) -> tuple[int, ...]:
        """Indices of args that have the batch dimensions of y, and gain one where others are mapped."""
        ...

    def value(self, xp: Any, known: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        """The result, on numbers; it is not differentiated."""
        ...

    def residual(self, y: Any, *args: Any) -> Any:
        """Zero at the result; differentiable."""
        ...

    def solve(self, xp: Any, y: Any, args: tuple[Any, ...], b: Any, transposed: bool) -> Any:
        """J^-1 b or J'^-1 b, for J the derivative of the residual by y; a differentiable function of all."""
        ...

    def mapped(self, xp: Any, axes: tuple[int | None, ...]) -> Implicit:
        """The rule with one more leading batch dimension, on y and on the args whose axis is 0."""
        ...


class Arrays(ABC):
    """Array functions of one framework.

    Names that are not listed here are those of the array API standard (2023.12), taken from the framework: `xp.exp`, `xp.where`,
    `xp.matmul`, `xp.linalg.solve`, `xp.take_along_axis`, ...; `einsum`, `logsumexp` and `softplus` besides. Creation functions that know
    no tensor (`zeros`, `eye`) give float64 on the default device; in numeric code prefer `new`, `zeros_like`, `eye_like`.

    The transformations take functions of one or more arrays that return one array, and nest in any order; numpy has none of them but
    `vmap`.

    Source: https://data-apis.org/array-api/2023.12/
    """

    name: str

    def __init__(self, namespace: Any) -> None:
        self._namespace = namespace

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._namespace, name)

    def __repr__(self) -> str:
        return f"<array functions of {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        from layercompiler import arrays

        return arrays.get, (self.name,)

    # Values --------------------------------------------------------------------------------------------------------------

    @abstractmethod
    def new(self, value: Any, like: Any = None) -> Any:
        """An array of a host value (numpy array, list, number), in dtype and device of `like`; float64 without it.

        Integer and boolean arrays keep their kind.
        """

    @abstractmethod
    def numpy(self, value: Any) -> np.ndarray:
        """The numbers on the host, detached.

        Raises:
            UnsupportedTransformError: The value is being traced and has no numbers.
        """

    @abstractmethod
    def traced(self, *values: Any) -> bool:
        """Whether any value is being traced or transformed, so that it has no numbers to branch on."""

    def eye_like(self, x: Any, n: int) -> Any:
        """Identity (n, n) in dtype and device of x."""
        return self.new(np.eye(n), x)

    @abstractmethod
    def stop_gradient(self, x: Any) -> Any:
        """X as a constant."""

    @abstractmethod
    def segment_sum(self, values: Any, index: np.ndarray, count: int) -> Any:
        """(count, ...): sums of the rows of values (k, ...) that share an index (k,)."""

    def axpy(self, a: Any, x: Any, y: Any) -> Any:
        """Y + a x for a that broadcasts against x."""
        return y + a * x

    def inner(self, a: Any, b: Any, axis: tuple[int, ...]) -> Any:
        """Inner products over some dimensions, which stay as ones; without dimensions the product."""
        return self.sum(a * b, axis=axis, keepdims=True) if axis else a * b

    def norm(self, a: Any, axis: tuple[int, ...]) -> Any:
        """Euclidean norms over some dimensions, which stay as ones; without dimensions the magnitude."""
        return self.linalg.vector_norm(a, axis=axis, keepdims=True) if axis else self.abs(a)

    def held(self, moving: Any, new: Any, old: Any) -> Any:
        """New where moving, elsewhere old."""
        return self.where(moving, new, old)

    @property
    def zero(self) -> Any:
        """Where a `while_loop` begins to count."""
        return self.new(0)

    @abstractmethod
    def softplus(self, x: Any) -> Any:
        """log(1 + exp(x)) without overflow."""

    @abstractmethod
    def ndtr(self, x: Any) -> Any:
        """The normal distribution function."""

    @abstractmethod
    def logsumexp(self, x: Any, axis: int | tuple[int, ...], keepdims: bool = False) -> Any:
        """log(sum(exp(x))) without overflow."""

    @abstractmethod
    def solve_triangular(self, L: Any, b: Any, *, lower: bool = True, transposed: bool = False) -> Any:
        """Solve L x = b, or L'x = b, for L (..., n, n) and b (..., n, k)."""

    @abstractmethod
    def cholesky(self, A: Any) -> tuple[Any, Any]:
        """(L, ok): lower factors of symmetric A (..., n, n), and where A is positive definite; elsewhere L is of no use."""

    def cholesky_solve(self, L: Any, b: Any) -> Any:
        """Solve L L'x = b for L (..., n, n) and b (..., n, k)."""
        return self.solve_triangular(L, self.solve_triangular(L, b), transposed=True)

    def add_diagonal(self, A: Any, d: Any) -> Any:
        """A + diag(d) for A (..., n, n) and d (..., n)."""
        return A + d[..., None] * self.eye_like(A, A.shape[-1])

    def gather(self, x: Any, index: Any, axis: int) -> Any:
        """`take_along_axis` without negative indices."""
        return self.take_along_axis(x, index, axis=axis)

    def matvec(self, M: Any, x: Any) -> Any:
        """M x for M (..., k, n) and x (..., n)."""
        return self.matmul(M, x[..., None])[..., 0]

    def less(self, C: Any, A: Any, B: Any) -> Any:
        """C - A B for matrices (b, ...)."""
        return C - self.matmul(A, B)

    def dense(self, x: Any) -> Any:
        """X in one piece of memory, which saves copies later."""
        return x

    def leading(self, x: Any, count: int) -> Any:
        """(b, count), where the largest entries of each row of x (b, k) are, in any order."""
        return self.argsort(-x, axis=1)[:, :count]

    def placed(self, x: Any, index: Any, value: Any) -> Any:
        """X (b, k) with a value, (b, 1) or a number, at index (b, 1) of each row."""
        return self.where(self.new(np.arange(x.shape[1]))[None] == index, value, x)

    def largest(self, x: Any) -> tuple[Any, Any]:
        """The largest entry of each row of x (b, k), (b, 1), and its index."""
        return self.max(x, axis=1, keepdims=True), self.argmax(x, axis=1, keepdims=True)

    def smallest(self, x: Any) -> tuple[Any, Any]:
        """The smallest entry of each row of x (b, k), (b, 1), and its index."""
        return self.min(x, axis=1, keepdims=True), self.argmin(x, axis=1, keepdims=True)

    def spread(self, values: Any, index: Any, size: int) -> Any:
        """(b, size): zeros, with values (b, k) at index (b, k), whose rows hold nothing twice."""
        at = index[:, :, None] == self.new(np.arange(size))
        return self.sum(self.where(at, values[:, :, None], self.zeros_like(values[:, :, None])), axis=1)

    @abstractmethod
    def lu_factor(self, A: Any) -> tuple[Any, Any]:
        """Packed LU of (..., n, n) and its pivots, in the framework's own form, for `lu_solve`."""

    @abstractmethod
    def lu_solve(self, LU: Any, pivots: Any, b: Any, *, transposed: bool = False) -> Any:
        """Solve A x = b, or A'x = b, for b (..., n, k), given `lu_factor(A)`."""

    def is_array(self, value: Any) -> bool:
        """Whether a value is an array: numpy's or the framework's."""
        return isinstance(value, (np.ndarray, np.generic)) or (hasattr(value, "dtype") and hasattr(value, "shape"))

    def is_floating(self, x: Any) -> bool:
        """Whether an array has a floating type, so that it has derivatives."""
        return "float" in str(x.dtype)

    def tree(self, value: Any) -> tuple[list[Any], Function]:
        """Leaves of nested tuples, lists and dicts, and the function that builds the nest from leaves."""
        if isinstance(value, dict):
            keys = sorted(value, key=str)
            leaves, build = self.tree([value[k] for k in keys])
            return leaves, lambda new: type(value)(zip(keys, build(new), strict=True))
        if isinstance(value, (tuple, list)):
            parts = [self.tree(v) for v in value]
            ends = list(accumulate((len(p[0]) for p in parts), initial=0))
            named = isinstance(value, tuple) and hasattr(value, "_fields")

            def build(new: Any) -> Any:
                items = [p[1](new[a:b]) for p, a, b in zip(parts, ends, ends[1:], strict=False)]
                return type(value)(*items) if named else type(value)(items)

            return [leaf for p in parts for leaf in p[0]], build
        if value is None:
            return [], lambda new: None
        return [value], lambda new: new[0]

    # Transformations -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def vjp(self, f: Function, *args: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
        """f(*args), and the function that pulls a cotangent of its value back to one cotangent per argument (zeros, never None)."""

    @abstractmethod
    def jvp(self, f: Function, args: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
        """f(*args) and its derivative along the tangents."""

    @abstractmethod
    def vmap(self, f: Function, in_axes: Any = 0) -> Function:
        """F over a leading batch dimension; `in_axes` is one for all arguments, or a tuple of 0 and None."""

    def grad(self, f: Function) -> Function:
        """Gradient of a scalar function with respect to its first argument."""

        def gradient(x: Any, *rest: Any) -> Any:
            value, pull = self.vjp(lambda v: f(v, *rest), x)
            return pull(self.ones_like(value))[0]

        return gradient

    @abstractmethod
    def jacobian(self, f: Function, x: Any) -> Any:
        """(m, n) dense Jacobian of f: (n,) -> (m,) at x."""

    def linearize(self, f: Function, x: Any) -> tuple[Any, Function]:
        """f(x), and v -> its derivative along v, with f evaluated once."""
        value, pull = self.vjp(f, x)
        _, push = self.vjp(lambda c: pull(c)[0], self.zeros_like(value))  # a pullback is linear: its own pullback is the derivative
        return value, lambda v: push(v)[0]

    def pullback(self, f: Function, x: Any) -> Function:
        """c -> its pullback through f at x, for repeated use on numbers: not to be differentiated again."""
        _, pull = self.vjp(f, x)
        return lambda c: pull(c)[0]

    def pushforward(self, f: Function, x: Any) -> Function:
        """v -> the derivative of f at x along v, for repeated use on numbers: not to be differentiated again."""
        return self.linearize(f, x)[1]

    def rows(self, pull: Function, push: Function, like: Any, single: bool = False) -> Any:
        """The matrix A (n, n) of u -> A'u and v -> A v, for operands of the n entries of `like`; None to leave it to `vmap`.

        In single precision, at the price of half of the time, if that is asked for; None where it cannot be had so.
        """
        return None

    @abstractmethod
    def implicit(self, rule: Implicit, known: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        """The array `rule.value(known, args)` as a differentiable function of `args`: it solves `rule.residual(y, *args) = 0`.

        Differentiable forwards, backwards and mapped, to any order: the derivative is evaluated at the result itself, not at a constant.
        """

    def captures(self, f: Function, args: tuple[Any, ...]) -> tuple[Function, tuple[Any, ...], Any, Any]:
        """(g, c, f(*args), tape), g(*args, *c) = f(*args): c are tensors beyond its arguments that f uses and derivatives may be asked of.

        Where a framework differentiates such tensors by itself, c is empty and g is f. The value is a constant. `tape` is None, or keeps
        this evaluation for products with the derivatives of f at args (`arrays.torch_implicit.Tape`).
        """
        args = tuple(self.stop_gradient(a) for a in args)
        return f, (), self.stop_gradient(f(*args)), None

    def host(self, f: Callable[..., np.ndarray], like: Any, *args: Any) -> Any:
        """The array of f(*args), a function of numpy arrays, as a constant of the shape and type of `like`."""
        return self.new(f(*(self.numpy(a) for a in args)), like)

    def constant(self) -> AbstractContextManager[Any]:
        """A context in which the framework keeps no record for derivatives, where it has one."""
        return nullcontext()

    def opaque(self, f: Callable[..., tuple[Any, ...]], mapped: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
        """Arrays f(*args) as constants, computed on numbers where the framework maps by a transformation that cannot branch.

        `mapped(axes, size, f)` is f with one more leading batch dimension, of this size, on the arguments whose axis is 0 and on every
        result.
        """
        return tuple(self.stop_gradient(v) for v in f(*(self.stop_gradient(a) for a in args)))

    @abstractmethod
    def while_loop(self, condition: Function, body: Function, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """Iterate body while condition holds; traced where the framework traces. Not differentiated through by contract."""

    def cond(self, condition: Any, yes: Function, no: Function, *args: Any) -> Any:
        """yes(*args) or no(*args), as a scalar condition says; traced where the framework traces."""
        return yes(*args) if bool(condition) else no(*args)

    @abstractmethod
    def compile(self, f: Function) -> Function:
        """F compiled for repeated calls of one shape where the framework has a compiler that pays on this machine, else f itself."""

    def trace(self, f: Function) -> Function:
        """F, freed of the cost of Python for repeated calls with arrays of one shape; no gradient passes through it.

        f must not look at numbers. What it closes over becomes constant.
        """
        return self.compile(f)

    def repeated(self, step: Function, first: int, going: int) -> Callable[..., tuple[tuple[Any, ...], int]]:
        """`trace`d steps in a loop: a function (arguments, limit, least, every) that gives the last values of a step, and their number.

        Values of a step take the place of its arguments from number `first` to the last. Steps go on, `limit` of them at most, while more
        than `least` entries of argument number `going` are true, which is asked before every `every`-th.
        """

        def run(arguments: tuple[Any, ...], limit: int, least: int, every: int) -> tuple[tuple[Any, ...], int]:
            turn = 0
            while turn < limit and (turn % every != 0 or int(self.sum(arguments[going])) > least):
                arguments = (*arguments[:first], *step(*arguments))
                turn += 1
            return arguments[first:], turn

        return run
