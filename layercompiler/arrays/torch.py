"""Array functions of torch: names of the array API by array-api-compat, transformations by torch.func."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat.torch as namespace
import numpy as np
import torch
from torch._C import _functorch

from layercompiler.arrays import torch_implicit, torch_linear
from layercompiler.arrays.base import Arrays, Function
from layercompiler.errors import UnsupportedTransformError

_WIDE = 24  # columns of a matrix


class Torch(Arrays):
    """Array functions of torch."""

    name = "torch"

    # The standard's meaning without the checks of dtypes, which cost more than the work on small tensors.
    matmul = staticmethod(torch.matmul)
    abs = staticmethod(torch.abs)
    sqrt = staticmethod(torch.sqrt)
    zeros_like = staticmethod(torch.zeros_like)
    ones_like = staticmethod(torch.ones_like)
    where = staticmethod(torch.where)
    full_like = staticmethod(torch.full_like)
    broadcast_to = staticmethod(torch.broadcast_to)

    def maximum(self, a: Any, b: Any) -> torch.Tensor:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return torch.maximum(a, b)
        a, b = (b, a) if isinstance(b, torch.Tensor) else (a, b)
        return torch.maximum(a, torch.as_tensor(b, dtype=a.dtype, device=a.device))

    def matrix_transpose(self, x: torch.Tensor) -> torch.Tensor:
        return x.mT

    def min(self, x: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        return torch.amin(x, () if axis is None else axis, keepdim=keepdims)

    def max(self, x: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        return torch.amax(x, () if axis is None else axis, keepdim=keepdims)

    def sum(self, x: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        return torch.sum(x, axis, keepdim=keepdims)

    @property
    def zero(self) -> int:
        return 0  # loops run eagerly

    def any(self, x: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        return torch.any(x) if axis is None else torch.any(x, axis, keepdim=keepdims)

    def all(self, x: torch.Tensor, axis: Any = None, keepdims: bool = False) -> torch.Tensor:
        return torch.all(x) if axis is None else torch.all(x, axis, keepdim=keepdims)

    def axpy(self, a: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(y, a, x)

    def inner(self, a: torch.Tensor, b: torch.Tensor, axis: tuple[int, ...]) -> torch.Tensor:
        if a.dim() == 1 and axis:
            return torch.dot(a, b).reshape(1)
        return torch.sum(a * b, axis, keepdim=True) if axis else a * b

    def norm(self, a: torch.Tensor, axis: tuple[int, ...]) -> torch.Tensor:
        return torch.linalg.vector_norm(a, 2, axis, True) if axis else torch.abs(a)

    def held(self, moving: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        return new if bool(torch.all(moving)) else torch.where(moving, new, old)

    def isfinite(self, x: torch.Tensor) -> torch.Tensor:
        return torch.abs(x) < torch.inf  # torch's own is four operations

    def clip(self, x: torch.Tensor, lower: Any = None, upper: Any = None) -> torch.Tensor:
        return torch.clamp(x, lower, upper)

    def concat(self, parts: Sequence[torch.Tensor], axis: int = 0) -> torch.Tensor:
        return torch.cat(list(parts), axis)

    def new(self, value: Any, like: Any = None) -> torch.Tensor:
        array = np.ascontiguousarray(value).reshape(np.shape(value))  # ascontiguousarray makes scalars (1,)
        device = None if like is None else like.device
        kind = None if array.dtype.kind in "biu" else torch.float64 if like is None else like.dtype
        return torch.tensor(array, dtype=kind, device=device)

    def numpy(self, value: Any) -> np.ndarray:
        if self.traced(value):
            raise UnsupportedTransformError("a transformed tensor has no numbers", mend="call this outside of torch.func transforms")
        return value.detach().cpu().resolve_neg().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)

    def traced(self, *values: Any) -> bool:
        return torch.compiler.is_compiling() or any(
            isinstance(v, torch.Tensor) and _functorch.is_functorch_wrapped_tensor(v) for v in values
        )

    def eye_like(self, x: torch.Tensor, n: int) -> torch.Tensor:
        return torch.eye(n, dtype=x.dtype, device=x.device)

    def stop_gradient(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach()

    def segment_sum(self, values: torch.Tensor, index: Any, count: int) -> torch.Tensor:
        at = torch.as_tensor(index, device=values.device, dtype=torch.int64)
        return torch.zeros((count, *values.shape[1:]), dtype=values.dtype, device=values.device).index_add(0, at, values)

    def softplus(self, x: torch.Tensor) -> torch.Tensor:
        return torch.logaddexp(x, torch.zeros((), dtype=x.dtype, device=x.device))  # nn.functional.softplus is cut off at 20

    def ndtr(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.ndtr(x)

    def logsumexp(self, x: torch.Tensor, axis: int | tuple[int, ...], keepdims: bool = False) -> torch.Tensor:
        return torch.logsumexp(x, axis, keepdim=keepdims)

    def solve_triangular(self, L: torch.Tensor, b: torch.Tensor, *, lower: bool = True, transposed: bool = False) -> torch.Tensor:
        return torch.linalg.solve_triangular(L.mT, b, upper=lower) if transposed else torch.linalg.solve_triangular(L, b, upper=not lower)

    def cholesky(self, A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        U, info = torch.linalg.cholesky_ex(A, upper=True)  # a row-major upper factor needs no copy; on the device: no exception, no wait
        return U.mT, info == 0

    def cholesky_solve(self, L: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return super().cholesky_solve(L, b) if L.is_cpu else torch.cholesky_solve(b, L)  # which copies L on the CPU

    def add_diagonal(self, A: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        A = A if A.shape[:-1] == d.shape else A.expand(torch.broadcast_shapes(A.shape[:-2], d.shape[:-1]) + A.shape[-2:])
        return torch.diagonal_scatter(A, A.diagonal(dim1=-2, dim2=-1) + d, 0, -2, -1)

    def matvec(self, M: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if M.shape[-1] < _WIDE:
            return torch.matmul(M, x.unsqueeze(-1)).squeeze(-1)
        return torch.matmul(x.unsqueeze(-2), M.mT).squeeze(-2)  # which takes two thirds of the time

    def less(self, C: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(C, A, B, alpha=-1)

    def dense(self, x: torch.Tensor) -> torch.Tensor:
        return x.contiguous()

    def leading(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return torch.topk(x, count, 1, sorted=False)[1]

    def placed(self, x: torch.Tensor, index: torch.Tensor, value: Any) -> torch.Tensor:
        return x.scatter(1, index, value)

    def largest(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.max(x, 1, keepdim=True))  # type: ignore[return-value]

    def smallest(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.min(x, 1, keepdim=True))  # type: ignore[return-value]

    def spread(self, values: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
        return values.new_zeros((len(values), size)).scatter(1, index, values)

    def gather(self, x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
        return torch.gather(x, axis, index)

    def lu_factor(self, A: torch.Tensor) -> tuple[Any, Any]:
        return tuple(torch.linalg.lu_factor_ex(A)[:2])  # a singular instance shows in its solutions, and must not stop the others

    def lu_solve(self, LU: Any, pivots: Any, b: torch.Tensor, *, transposed: bool = False) -> torch.Tensor:
        return torch.linalg.lu_solve(LU, pivots, b, adjoint=transposed)

    def implicit(self, rule: Any, known: tuple[Any, ...], args: tuple[Any, ...]) -> torch.Tensor:
        return torch_implicit.implicit(self, rule, known, args)

    def captures(self, f: Function, args: tuple[Any, ...]) -> tuple[Function, tuple[Any, ...], Any, Any]:
        return torch_implicit.captures(f, args)

    def pullback(self, f: Function, x: torch.Tensor) -> Function:
        if self.traced(x):
            return super().pullback(f, x)
        with torch.enable_grad():  # plain autograd: a call costs a fifth of one through torch.func
            x = x.detach().requires_grad_()
            value = f(x)
        return torch_linear.Product(value, x)

    def pushforward(self, f: Function, x: torch.Tensor) -> Function:
        if self.traced(x):
            return super().pushforward(f, x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = f(x)
        return torch_linear.Push(value, x)

    def rows(self, pull: Function, push: Function, like: torch.Tensor, single: bool = False) -> torch.Tensor | None:
        for product, flipped in sorted(((pull, False), (push, True)), key=lambda pair: isinstance(pair[0], torch_linear.Push)):
            product = getattr(product, "linearized", lambda product=product: product)()
            found = product.rows(single) if isinstance(product, torch_linear.Product) else None
            if found is not None:
                return found.mT if flipped else found
        return None

    def constant(self) -> Any:
        return torch.no_grad()

    def host(self, f: Any, like: Any, *args: Any) -> torch.Tensor:
        def call(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (self.new(f(*(v.detach().cpu().numpy() for v in values)), like),)

        def mapped(axes: Any, size: int, inner: Any) -> Any:
            def rows(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
                found = [inner(*(v if axis is None else v[i] for v, axis in zip(values, axes, strict=True)))[0] for i in range(size)]
                return (torch.stack(found),)

            return rows

        return torch_implicit.opaque(call, mapped, args)[0]

    def opaque(self, f: Any, mapped: Any, *args: Any) -> tuple[Any, ...]:
        return torch_implicit.opaque(f, mapped, args)

    def vjp(self, f: Function, *args: Any) -> Any:
        return torch.func.vjp(f, *args)

    def jvp(self, f: Function, args: Sequence[Any], tangents: Sequence[Any]) -> Any:
        return torch.func.jvp(f, tuple(args), tuple(tangents))

    def vmap(self, f: Function, in_axes: Any = 0) -> Function:
        return torch.func.vmap(f, in_axes)

    def jacobian(self, f: Function, x: torch.Tensor) -> torch.Tensor:
        return torch.func.jacrev(f)(x)

    def while_loop(self, condition: Function, body: Function, state: tuple[Any, ...]) -> tuple[Any, ...]:
        while condition(*state):
            state = body(*state)
        return state

    def compile(self, f: Function) -> Function:
        return f

    def trace(self, f: Function) -> Function:
        from layercompiler.arrays.torch_trace import Traced

        return Traced(f)

    def repeated(self, step: Function, first: int, going: int) -> Function:
        from layercompiler.arrays.torch_trace import Repeated

        return Repeated(step, first, going)

    def spell(self, f: Function, samples: Sequence[Any], inputs: Sequence[Any], graph: Any) -> Any:
        """See `torch_scalars.spell`."""
        from layercompiler.arrays.torch_scalars import spell

        return spell(f, samples, inputs, graph)


ARRAYS = Torch(namespace)
