"""Products with a Jacobian in torch, many of the same: what autograd's engine ran for one of them, replayed without the engine.

For small residuals the engine costs as much as the arithmetic. The operations of a second product are recorded; those that do not
depend on the operand are kept as constants, runs of elementwise factors are merged into one, and later products replay what is left.
Only built-in operations are recorded: code in Python might decide by numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch._C import _functorch
from torch.utils._python_dispatch import TorchDispatchMode

try:
    from torch.autograd.graph import _engine_run_backward as _run_backward
except ImportError:  # not of torch's public interface
    _run_backward = None

ATEN = torch.ops.aten
# v -> k v with a k that does not depend on v, by the position of v.
FACTORS: dict[Any, tuple[int, ...]] = {
    ATEN.neg.default: (0,),
    ATEN.mul.Tensor: (0, 1),
    ATEN.mul.Scalar: (0,),
    ATEN.div.Tensor: (0,),
    ATEN.div.Scalar: (0,),
    ATEN.sigmoid_backward.default: (0,),
    ATEN.tanh_backward.default: (0,),
    ATEN.threshold_backward.default: (0,),
    ATEN.detach.default: (0,),
}
# The same through the shorter path from Python.
DIRECT: dict[Any, Any] = {
    ATEN.mv.default: torch.mv,
    ATEN.mm.default: torch.mm,
    ATEN.bmm.default: torch.bmm,
    ATEN.mul.Tensor: torch.mul,
    ATEN.add.Tensor: torch.add,
    ATEN.sub.Tensor: torch.sub,
    ATEN.neg.default: torch.neg,
}
REFUSED = {ATEN._local_scalar_dense.default, ATEN.nonzero.default}


def pulled(value: torch.Tensor, to: tuple[torch.Tensor, ...], c: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """C, of the shape of the value, pulled back to some tensors; the graph is kept."""
    if _run_backward is None or c.shape != value.shape:
        return torch.autograd.grad(value, to, c, retain_graph=True, allow_unused=True)
    # what `grad` comes down to; its checks take longer than many a residual
    return _run_backward((value,), (c,), True, False, to, True, accumulate_grad=False)


class Product:
    """c -> c pulled back through the graph of a value to x, which is kept; on numbers, whatever the grad mode.

    Args:
        value: Computed from x.
        x: A leaf, or any tensor the graph passes.
    """

    def __init__(self, value: torch.Tensor, x: torch.Tensor) -> None:
        self.value, self.x = value, x
        self.first: tuple[torch.Tensor, torch.Tensor] | None = None
        self.program: Program | None = None
        self.tried = False

    def __call__(self, c: torch.Tensor) -> torch.Tensor:
        """The product."""
        if not self.value.requires_grad:
            return torch.zeros_like(self.x)
        if type(c) is not torch.Tensor or c.shape != self.value.shape or _functorch.is_functorch_wrapped_tensor(c) or _run_backward is None:
            found = torch.autograd.grad(self.value, self.x, c, retain_graph=True, allow_unused=True)[0]
            return torch.zeros_like(self.x) if found is None else found
        if self.tried:
            return self._engine(c) if self.program is None else self.program(c)
        if self.first is not None:
            return self._recorded(c)
        found = self._engine(c)
        self.first = c.clone(), found.clone()  # callers work in place
        return found

    def _engine(self, c: torch.Tensor) -> torch.Tensor:
        found = pulled(self.value, (self.x,), c)[0]
        return torch.zeros_like(self.x) if found is None else found

    def _recorded(self, c: torch.Tensor) -> torch.Tensor:
        """Record; what is recorded counts only if it repeats the first product."""
        program, found = self._record(c)
        if program is not None and self.first is not None and bool(self.first[0].any()) and _same(program(self.first[0]), self.first[1]):
            self.program = program  # of zeros, whatever was recorded would repeat the product
        self.tried, self.first = True, None
        return found

    def _record(self, c: torch.Tensor) -> tuple[Program | None, torch.Tensor]:
        if not _built_in(self.value):
            return None, self._engine(c)
        recorder = _Recorder()
        with recorder:
            found = self._engine(c)
        return None if recorder.lines is None else Program.of(recorder.lines, c, found), found

    def rows(self, single: bool = False) -> torch.Tensor | None:
        """(n, m): the product of every row of the identity, for operands of one dimension; None if there is no record."""
        if self.value.dim() != 1 or not self.value.requires_grad or _functorch.is_functorch_wrapped_tensor(self.value):
            return None
        if _run_backward is None or (self.tried and self.program is None):
            return None
        c = torch.linspace(0.5, 1.0, self.value.shape[0], dtype=self.value.dtype, device=self.value.device)
        program = self.program or self._record(-c.flip(0))[0]
        self.tried = True
        if program is None:
            return None
        try:
            found = program.rows(self.value.detach(), single)
        except RuntimeError:  # an operation that does not map, or of a type that does not change
            return None
        exact = self._engine(c)
        if found.dtype != c.dtype:  # single digits vouch for no program in double ones
            if not _same(program(c), exact):
                return None
            c, exact = c.to(found.dtype), exact.to(found.dtype)
        if not _same(c @ found, exact):
            return None
        self.program = program
        return found


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    scale = float(torch.linalg.vector_norm(b))
    return bool(torch.linalg.vector_norm(a - b) <= 1e3 * torch.finfo(b.dtype).eps * max(scale, 1e-300))


class Push(Product):
    """v -> the derivative of a value by x along v: the pullback is linear, and its own pullback is the derivative."""

    def __init__(self, value: torch.Tensor, x: torch.Tensor) -> None:
        self._of = value, x
        self.first, self.program, self.tried = None, None, False

    @cached_property
    def _graph(self) -> tuple[torch.Tensor, torch.Tensor]:
        value, x = self._of
        if not value.requires_grad:
            return torch.zeros_like(x), torch.zeros_like(value)
        with torch.enable_grad():
            c = torch.zeros_like(value, requires_grad=True)
            pulled = torch.autograd.grad(value, x, c, create_graph=True, allow_unused=True)[0]
        return torch.zeros_like(x) if pulled is None else pulled, c

    @property
    def value(self) -> torch.Tensor:  # type: ignore[override]
        """The pullback."""
        return self._graph[0]

    @property
    def x(self) -> torch.Tensor:  # type: ignore[override]
        """Its cotangent."""
        return self._graph[1]


def _built_in(value: torch.Tensor) -> bool:
    seen, left = {value.grad_fn}, [value.grad_fn]
    while left:
        node = left.pop()
        if isinstance(node, torch._C._FunctionBase) or len(seen) > 2000:
            return False
        for before, _ in node.next_functions:  # type: ignore[union-attr]
            if before is not None and before not in seen:
                seen.add(before)
                left.append(before)
    return True


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Any] | None = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in REFUSED or not isinstance(out, torch.Tensor) or torch.Tag.nondeterministic_seeded in func.tags:
            self.lines = None
        elif self.lines is not None:
            self.lines.append((func, args, kwargs or {}, out))
        return out


class _Slot:
    """A value of the program."""

    def __init__(self, at: int) -> None:
        self.at = at


class Program:
    """Operations on numbered values; value 0 is the operand."""

    def __init__(self) -> None:
        # function, arguments, which of them are values of which number, named arguments, number of the result
        self.lines: list[tuple[Callable[..., Any], list[Any], list[tuple[int, int]], dict[str, Any], int]] = []
        self.size = 1
        self.result = 0

    @classmethod
    def of(cls, recorded: list[Any], c: torch.Tensor, result: torch.Tensor) -> Program | None:
        """The program of what was recorded for the operand c; None if it has a form that is not understood."""
        self = cls()
        values: dict[int, tuple[int, torch.Tensor | None]] = {id(c): (0, None)}  # of a tensor: its number, and a factor that is due
        mutated = {id(args[0]) for func, args, _, _ in recorded if func._schema.is_mutable and args}
        made = {id(out) for *_, out in recorded}

        def moving(value: Any) -> bool:
            return isinstance(value, torch.Tensor) and id(value) in values

        for func, args, kwargs, out in recorded:
            at = [i for i, a in enumerate(args) if moving(a)]
            if any(map(moving, kwargs.values())) or any(isinstance(a, (list, tuple)) and any(map(moving, a)) for a in args):
                return None
            if not at and id(out) not in mutated:
                continue  # a constant
            if func._schema.is_mutable and (id(args[0]) == id(c) or id(args[0]) not in made):
                return None
            one = args[at[0]] if len(at) == 1 else None
            if one is not None and at[0] in FACTORS.get(func, ()) and out.shape == one.shape and not {id(out), id(one)} & mutated:
                number, due = values[id(one)]
                factor = torch.ones_like(one) if due is None else due
                values[id(out)] = number, func(*(factor if i == at[0] else a for i, a in enumerate(args)), **kwargs)
                continue
            values[id(out)] = self.add(DIRECT.get(func, func), [self.slot(*values[id(a)]) if moving(a) else a for a in args], kwargs), None
        if id(result) not in values:
            return None
        self.result = self.slot(*values[id(result)]).at
        return self

    def add(self, func: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> int:
        """One more line; the number of its result."""
        places = [(i, a.at) for i, a in enumerate(args) if type(a) is _Slot]
        self.lines.append((func, [None if type(a) is _Slot else a for a in args], places, kwargs, self.size))
        self.size += 1
        return self.size - 1

    def slot(self, at: int, factor: torch.Tensor | None) -> _Slot:
        """A value with its factor applied."""
        return _Slot(at if factor is None else self.add(torch.mul, [_Slot(at), factor], {}))

    def __call__(self, c: torch.Tensor, known: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
        """Run; some results may be known."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self(c, known)
        values: list[Any] = [c] * self.size
        for func, args, places, kwargs, to in self.lines:
            if known is not None and to in known:
                values[to] = known[to]
                continue
            given = list(args)
            for i, at in places:
                given[i] = values[at]
            values[to] = func(*given, **kwargs) if kwargs else func(*given)
        result = values[self.result]
        return result.clone() if known is None and result.data_ptr() == c.data_ptr() else result  # callers work in place

    def singles(self) -> Program:
        """The same in single precision."""
        cast: dict[Any, torch.Tensor] = {}

        def single(a: Any) -> Any:
            if not isinstance(a, torch.Tensor) or a.dtype != torch.float64:
                return a
            flipped = a.dim() == 2 and a.stride(0) < a.stride(1)  # a matrix and its transpose are cast once
            a = a.detach().mT if flipped else a.detach()
            key = a.data_ptr(), a.shape, a.stride()
            if key not in cast:
                cast[key] = a.float()
            return cast[key].mT if flipped else cast[key]

        other = Program()
        other.size, other.result = self.size, self.result
        other.lines = [
            (func, [single(a) for a in args], places, {k: single(v) for k, v in kwargs.items()}, to)
            for func, args, places, kwargs, to in self.lines
        ]
        return other

    def rows(self, like: torch.Tensor, single: bool = False) -> torch.Tensor:
        """The product of every row of the identity: a matrix times the identity is that matrix, which saves a product of matrices."""
        if single:
            return self.singles().rows(like.float())
        factors: dict[int, torch.Tensor | None] = {0: None}
        known: dict[int, torch.Tensor] = {}
        for func, args, places, _, to in self.lines:
            if func is torch.mul and places == [(0, 0)] and args[1].shape == like.shape:
                factors[to] = args[1]
            elif func is torch.mv and len(places) == 1 and places[0][0] == 1 and places[0][1] in factors:
                factor = factors[places[0][1]]
                known[to] = args[0].detach().mT if factor is None else args[0].detach().mT * factor[:, None]
        numbers = list(known)
        with torch.no_grad():
            return torch.func.vmap(lambda c, *some: self(c, dict(zip(numbers, some, strict=True))))(
                torch.eye(like.shape[0], dtype=like.dtype, device=like.device), *known.values()
            )
