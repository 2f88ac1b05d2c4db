"""The run time of implicit problems: a layer is a function of tensors, in whatever framework they belong to."""

from __future__ import annotations

from typing import Any

from layercompiler import arrays
from layercompiler.arrays import Arrays
from layercompiler.derivatives.factors import Factor
from layercompiler.errors import BuildError, DtypeError
from layercompiler.implicit.arguments import Arguments, Function, Unknown, bound
from layercompiler.implicit.certificate import Certificate, certify
from layercompiler.implicit.problem import Argmin, Declarative, FixedPoint, Lowered, Root, Unrolled, solver_of
from layercompiler.implicit.solve import Policy, differentiable


class Layer:
    """An implicit problem as a function of tensors.

    Args:
        problem: `Root`, `FixedPoint`, `Argmin`, `Declarative` or `Unrolled`.
        framework: "torch", "jax", "tensorflow" or "numpy".
    """

    def __init__(self, problem: Any, framework: str) -> None:
        self.problem, self.framework, self.xp = problem, framework, arrays.get(framework)

    def __call__(self, *theta: Any, init: Any = None, **named: Any) -> Any:
        """The solution at theta (arrays or nests of arrays), of the structure of `init`, differentiable in theta.

        Args:
            *theta: What the functions of the problem take behind the unknown.
            init: Where to start, instead of the problem's own.
            **named: Further arguments of the functions, by name.

        Raises:
            SolveError: An instance has no solution, and on_error is "raise".
        """
        if isinstance(self.problem, Unrolled):
            return self._unroll(theta, init, named)
        problem, lowered, y, start, arguments, unknown, residual = self._prepare(theta, init, named)
        factor: Factor | None = None
        solver = solver_of(problem)
        if solver is not None:
            y = self._external(solver, start, arguments, unknown, lowered)
        else:
            y, factor = self._own(lowered, y, arguments.arrays)
        attached, _ = differentiable(self.xp, lowered.residual, y, arguments.arrays, self._policy(problem, lowered), factor)
        result = lowered.recover(attached) if lowered.recover else unknown.unflatten(attached)
        if isinstance(self.problem, Declarative) and not self.problem.duals and lowered.recover:
            result = result[0]
        if getattr(problem, "has_aux", False):
            return result, residual(attached, arguments.arrays)[1]
        return result

    def certificate(
        self, *theta: Any, init: Any = None, beta: float | None = None, gamma: float | None = None, **named: Any
    ) -> Certificate:
        """How far the solution and its Jacobian may be from the truth (`layercompiler.implicit.certificate.Certificate`)."""
        problem, lowered, y, start, arguments, unknown, _ = self._prepare(theta, init, named)
        solver = solver_of(problem)
        y = self._external(solver, start, arguments, unknown, lowered) if solver else self._own(lowered, y, arguments.arrays)[0]
        return certify(self.xp, lowered.residual, y, arguments.arrays, unknown.batch, beta=beta, gamma=gamma)

    def _prepare(self, theta: tuple[Any, ...], init: Any, named: dict[str, Any]) -> Any:
        xp = self.xp
        problem = self.problem.argmin(xp) if isinstance(self.problem, Declarative) else self.problem
        arguments = Arguments(xp, tuple(self._tensor(t) for t in theta), named)
        start = self._start(problem.init if init is None else init, arguments)
        unknown = Unknown(xp, start, problem.batch)
        y = unknown.flatten(start)
        main = bound(_main(problem), xp)

        def both(v: Any, values: tuple[Any, ...]) -> Any:
            args, names = arguments.rebuild(values)
            return main(unknown.unflatten(v), *args, **names)

        def flat(v: Any, *values: Any) -> Any:
            value = both(v, values)
            value = value[0] if getattr(problem, "has_aux", False) else value
            return value if isinstance(problem, Argmin) else unknown.flatten(value)

        return problem, problem.lower(xp, unknown, flat), y, start, arguments, unknown, both

    def _start(self, init: Any, arguments: Arguments) -> Any:
        if init is None:
            raise BuildError("no starting point", where=type(self.problem).__name__, mend="pass init=... to the problem or to the call")
        xp = self.xp
        if callable(init):
            args, named = arguments.rebuild(arguments.arrays)
            init = bound(init, xp)(*args, **named)
        like = next((a for a in arguments.arrays if xp.is_floating(a)), None)
        leaves, build = xp.tree(init)
        return build([self._tensor(leaf, like) for leaf in leaves])

    def _tensor(self, value: Any, like: Any = None) -> Any:
        if isinstance(value, (tuple, list, dict)):
            leaves, build = self.xp.tree(value)
            return build([self._tensor(leaf, like) for leaf in leaves])
        if self.xp.is_array(value):
            found = arrays.of(value).name
            if found == "numpy" and self.framework != "numpy":
                return self.xp.new(value, like)
            if found != self.framework:
                raise DtypeError("a tensor of another framework", expected=self.framework, got=found)
            return value
        return self.xp.new(value, like) if isinstance(value, float) else value

    def _policy(self, problem: Any, lowered: Lowered) -> Policy:
        structure = frozenset(problem.structure) | lowered.structure
        return Policy(problem.linear_solve or lowered.linear_solve, structure, problem.batch, problem.tolerance, problem.on_error)

    def _own(self, lowered: Lowered, y: Any, theta: tuple[Any, ...]) -> tuple[Any, Factor | None]:
        kinds: list[Any] = []

        def run(y0: Any, *values: Any) -> tuple[Any, ...]:
            with self.xp.constant():
                result = lowered.run(y0, *values)
            kinds[:] = [] if result.factor is None else [result.factor.kind, result.factor.sign]
            return (result.y, *(() if result.factor is None else result.factor.arrays))

        found = self.xp.opaque(run, one_by_one(self.xp), y, *theta)
        return found[0], Factor(kinds[0], tuple(found[1:]), kinds[1]) if kinds else None

    def _external(self, solver: Function, start: Any, arguments: Arguments, unknown: Unknown, lowered: Lowered) -> Any:
        call = bound(solver, self.xp)

        def run(*values: Any) -> tuple[Any, ...]:
            args, named = arguments.rebuild(values)
            found = call(start, *args, **named)
            if lowered.recover is not None and isinstance(found, tuple):
                return (self.xp.concat([p for p in found if p is not None], axis=-1),)
            return (unknown.flatten(found),)

        return self.xp.opaque(run, one_by_one(self.xp), *arguments.arrays)[0]

    def _unroll(self, theta: tuple[Any, ...], init: Any, named: dict[str, Any]) -> Any:
        problem, xp = self.problem, self.xp
        arguments = Arguments(xp, tuple(self._tensor(t) for t in theta), named)
        y = self._start(problem.init if init is None else init, arguments)
        step = bound(problem.step, xp)
        args, names = arguments.rebuild(arguments.arrays)
        weights = None if problem.learn is None else xp.tree(self.weights())
        for k in range(problem.n):
            y = step(y, *args, **names) if weights is None else step(y, weights[1]([w[k] for w in weights[0]]), *args, **names)
            if problem.truncate is not None and k == problem.n - problem.truncate - 1:
                leaves, build = xp.tree(y)
                y = build([xp.stop_gradient(leaf) for leaf in leaves])
        return y

    def weights(self) -> Any:
        """Weights of an unrolled algorithm."""
        return self._tensor(self.problem.learn)

    def __repr__(self) -> str:
        return f"Layer[{self.framework}]({type(self.problem).__name__})"


def one_by_one(xp: Arrays) -> Function:
    """Mapping an opaque function over a batch, instance by instance (`Arrays.opaque`)."""

    def mapped(axes: Any, size: int, inner: Function) -> Function:
        def rows(*values: Any) -> tuple[Any, ...]:
            found = [inner(*(v if axis is None else v[i] for v, axis in zip(values, axes, strict=True))) for i in range(size)]
            return tuple(xp.stack(list(column)) for column in zip(*found, strict=True))

        return rows

    return mapped


def _main(problem: Any) -> Function:
    return problem.F if isinstance(problem, Root) else problem.T if isinstance(problem, FixedPoint) else problem.f
