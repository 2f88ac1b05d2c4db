"""The torch layer: tensors of any dtype and device in and out around the operators."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layercompiler.errors import DtypeError, InputError, StoreError, UnsupportedTransformError
from layercompiler.plan.arguments import NUMBERS, REAL_PARTS
from layercompiler.status import Info
from layercompiler.torch import host, native, operators
from layercompiler.torch.express import Express
from layercompiler.torch.quick import Quick
from layercompiler.torch.registry import Bound, bind

# numpy codes of the floating dtypes; numpy has no bfloat16, whose numbers are at least as coarse as those of float16
_CODES = {torch.float64: "d", torch.float32: "f", torch.float16: "e", torch.bfloat16: "e"}


@dataclass(frozen=True)
class Solution:
    """The answer of `Layer.solve`: named tensors and what happened to each instance.

    Attributes:
        outputs: The layer's outputs in their order, each (batch..., *shape), in the dtype and on the device of the inputs;
            gradients flow through them as through a call of the layer.
        values: Outputs by name.
        value: Optimal value of the problem as the user wrote it, batch shape, float64, without gradient (`problem.objective`
            among the layer's outputs has one).
        info: Per-instance facts, numpy arrays of the batch shape.
        warm_start: A value to hand to a later call; its content is private.
    """

    outputs: tuple[Tensor, ...]
    values: Mapping[str, Tensor]
    value: Tensor
    info: Info
    warm_start: Tensor = field(repr=False)

    @property
    def status(self) -> Tensor:
        """`layercompiler.Status` codes, batch shape, int8."""
        return torch.as_tensor(np.array(self.info.status))

    @property
    def residual(self) -> Tensor:
        """Relative residual of the optimality conditions, batch shape, float64."""
        return torch.as_tensor(np.array(self.info.residual))


class Layer(torch.nn.Module):
    """A compiled problem as a torch module: parameters in, solution out, differentiable.

    Args:
        compiled: The compiled problem. It is structure, not state: `state_dict` holds its fingerprint and no data.

    Example:
        >>> import cvxpy as cp, layercompiler as lc, torch
        >>> x, c = cp.Variable(2), cp.Parameter(2)
        >>> layer = lc.export(cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0]), "torch")
        >>> c = torch.tensor([1.0, -1.0], requires_grad=True)
        >>> (y,) = layer(c)
        >>> y.sum().backward()
        >>> [round(g, 6) + 0.0 for g in c.grad.tolist()]
        [1.0, 0.0]

    Differentiability:
        Reverse and forward mode and their mixtures up to order two, under torch.compile and torch.func too; a third derivative
        raises UnsupportedTransformError. Failed instances (with on_error="flag") are NaN, with zero derivatives.

    Cost:
        The problem is solved in float64, whatever the dtype of the tensors is (but see `precision` of `Options`). Dense problems of
        linear and second-order cones whose tensors are on a GPU are solved there, forward and backward (the array interior point,
        without warm starts); all others on the host.
    """

    def __init__(self, compiled: Any) -> None:
        super().__init__()
        self._bound = bind(compiled)
        if self._bound.quick is None:
            self._bound.quick = Quick.of(self._bound) or Express.of(self._bound)

    @property
    def compiled(self) -> Any:
        """The compiled problem."""
        return self._bound.compiled

    def forward(self, *tensors: Any, warm_start: Any = None, options: Any = None, **named: Any) -> tuple[Tensor, ...]:
        """Solve the problem at the given parameters.

        Args:
            *tensors: Parameters in the order of the compiled problem, each (batch..., *shape); leading dimensions broadcast as in
                numpy. Numbers, lists and numpy arrays are taken too.
            warm_start: The `Solution` of an earlier `solve`, to start from.
            options: `Options`, or a dict of their fields, of this call instead of the layer's.
            **named: Parameters by name.

        Returns:
            One tensor per output, (batch..., *shape), in the dtype (the widest floating one) and on the device of the tensors.

        Raises:
            InputError: A count, a name, a shape, a dtype or a value of a parameter is wrong.
            SolveError: An instance has no solution or could not be solved, and the layer is not told to flag it.
        """
        bound, quick = self._bound, False
        if options is None and warm_start is None and not torch.compiler.is_compiling() and bound.quick is not None:
            if not named:
                outputs = bound.quick(bound, tensors)
                if outputs is not None:
                    return outputs
            quick = True
        return run(self._with(options), tensors, named, warm_start, quick)[0]

    def solve(self, *tensors: Any, warm_start: Any = None, options: Any = None, **named: Any) -> Solution:
        """Solve, and tell what happened to each instance; the arguments are those of a call.

        Raises:
            UnsupportedTransformError: Inside torch.compile or a torch.func transform, where there is no per-instance information.
        """
        return solve(self._with(options), tensors, named, warm_start)

    def _with(self, options: Any) -> Bound:
        return self._bound if options is None else bind(self.compiled, type(self.compiled.options).of(options))

    def report(self) -> str:
        """What the compiler did, pass by pass."""
        return self.compiled.report()

    def extra_repr(self) -> str:
        """One line about the problem: parameters, outputs, size, cones, solver."""
        return self.compiled.describe()

    def get_extra_state(self) -> str:
        """The fingerprint of the compiled problem, the only thing that `state_dict` keeps of it."""
        return self.compiled.fingerprint

    def set_extra_state(self, state: Any) -> None:
        """Check that a checkpoint belongs to this problem.

        Raises:
            StoreError: It was written by a layer of another problem.
        """
        if state != self.compiled.fingerprint:
            raise StoreError(
                "the checkpoint was written by a layer of another problem",
                expected=f"fingerprint {self.compiled.fingerprint}",
                got=str(state),
                mend="build the layer from the same problem; its data is not part of a checkpoint",
            )


def run(
    bound: Bound, tensors: tuple[Any, ...], named: dict[str, Any], warm_start: Any, quick: bool = False
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Outputs and z of a problem, for the arguments of a call; `quick`: by its short way where it has one, and then without z."""
    if named or len(tensors) != len(bound.parameters):
        tensors = _bind(bound, tensors, named)
    outputs, z = bound.quick(bound, tensors) if quick and named else None, None  # without names `Layer` has tried it
    if outputs is not None:
        return outputs, z
    if bound.native is not None and (bound.asked or any([isinstance(t, Tensor) and t.is_cuda for t in tensors])):
        outputs, found = _run_natively(bound, tensors)  # type: ignore[reportCallIssue]
        return outputs, found["status"]
    theta, codes, dtype, device = _read(tensors, bound.parameters)
    if quick and codes:  # other dtypes, made float64
        outputs = bound.quick(bound, theta)
    if outputs is None:
        *outputs, z = operators.solve(theta, None if warm_start is None else _start(warm_start), codes, bound)
    if dtype is not torch.float64 or device is not None:
        outputs = [x.to(device=device, dtype=dtype) for x in outputs]
    return tuple(outputs), z


def solve(bound: Bound, tensors: tuple[Any, ...], named: dict[str, Any], warm_start: Any) -> Solution:
    """The solution of a problem, for the arguments of a call."""
    if bound.native is not None and (bound.asked or any([isinstance(t, Tensor) and t.is_cuda for t in tensors])):
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            raise _no_information()
        if named or len(tensors) != len(bound.parameters):
            tensors = _bind(bound, tensors, named)
        began = time.perf_counter()
        outputs, found = _run_natively(bound, tensors, True)  # type: ignore[reportCallIssue]
        seconds = time.perf_counter() - began
        facts = native.info(bound.compiled, _read(tensors, bound.parameters)[0], found, seconds)
        values = dict(zip((o.name for o in bound.compiled.outputs), outputs, strict=True))
        return Solution(outputs, MappingProxyType(values), found["value"], facts, torch.zeros(0))
    outputs, z = run(bound, tensors, named, warm_start)
    evaluation = None if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or z is None else host.recall(z)
    if evaluation is None or z is None:
        raise _no_information()
    found = evaluation.solution()
    values = dict(zip((o.name for o in bound.compiled.outputs), outputs, strict=True))
    return Solution(outputs, MappingProxyType(values), torch.as_tensor(np.array(found.value)), found.info, z.detach())


@torch.compiler.disable
def _run_natively(bound: Bound, tensors: tuple[Any, ...], told: bool = False) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Outputs in the dtype of the tensors, by the array interior point on their device."""
    theta, _, dtype, device = _read(tensors, bound.parameters, host=False)
    theta = [t.to(device=device) for t in theta] if device is not None else theta
    compiled = bound.compiled
    batch = compiled.batch_shape([tuple(t.shape) for t in theta])
    if device is None and compiled.options.check_domain and not torch._C._are_functorch_transforms_active():
        compiled.reader.read([host._array(t) for t in theta], True, compiled.on_error == "raise")
    outputs, found = native.run(bound.native, theta, batch, told)  # type: ignore[arg-type]
    return tuple(outputs if dtype is torch.float64 else [x.to(dtype) for x in outputs]), found


def _no_information() -> UnsupportedTransformError:
    return UnsupportedTransformError(
        "solve() has no per-instance information inside torch.compile, torch.export or a torch.func transform",
        mend="call the layer itself there, and solve() outside",
    )


def _bind(bound: Bound, tensors: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    rest = bound.parameters[len(tensors) :]
    if len(rest) == len(named) > 0 and all([name in named for name in rest]):
        return (*tensors, *[named[name] for name in rest])
    return tuple(bound.compiled.arguments(tensors, named))  # says what is wrong


def _read(values: Sequence[Any], names: Sequence[str], host: bool = True) -> tuple[list[Tensor], str, torch.dtype, torch.device | None]:
    """Float64 tensors (on the host, or where they are), the codes of their dtypes (empty: all float64), dtype and device of the outputs.

    The device is None for the host.
    Tensors decide about the outputs; among none, numpy arrays do. Numbers and lists follow.
    """
    for value in values:
        if not isinstance(value, Tensor) or value.dtype is not torch.float64 or not value.is_cpu:
            break
    else:
        return list(values), "", torch.float64, None
    tensors = [v if isinstance(v, Tensor) else _tensor(v, name) for v, name in zip(values, names, strict=True)]
    for tensor, name in zip(tensors, names, strict=True):
        if tensor.is_complex():
            raise DtypeError(
                f"parameter {name!r} is complex",
                where=f"parameter {name!r}",
                expected="a real dtype",
                got=f"complex {tensor.dtype}",
                mend=REAL_PARTS,
            )
    deciding = [t.dtype for t, v in zip(tensors, values, strict=True) if t.is_floating_point() and isinstance(v, Tensor)]
    deciding = deciding or [t.dtype for t, v in zip(tensors, values, strict=True) if t.is_floating_point() and hasattr(v, "dtype")]
    dtype = functools.reduce(torch.promote_types, deciding) if deciding else torch.get_default_dtype()
    codes = "".join([_CODES.get(t.dtype, "d") for t in tensors])
    place: Any = {"device": "cpu"} if host else {}
    theta = [t if t.dtype is torch.float64 and (t.is_cpu or not host) else t.to(dtype=torch.float64, **place) for t in tensors]
    return theta, codes, dtype, _device(tensors)


def _device(tensors: Sequence[Tensor]) -> torch.device | None:
    devices = [t.device for t in tensors if not t.is_cpu]
    for device in devices:
        if device != devices[0]:
            raise InputError(
                "the parameters are on different devices", expected=str(devices[0]), got=str(device), mend="move them to one device"
            )
    return devices[0] if devices else None


def _tensor(value: Any, name: str) -> Tensor:
    """A tensor from numbers, lists or numpy arrays; lists become float64, so that nothing is rounded on the way."""
    if isinstance(value, np.ndarray) and (min(value.strides, default=0) < 0 or not value.dtype.isnative):  # torch has no such tensors
        value = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
    try:
        return torch.as_tensor(value) if isinstance(value, (np.ndarray, np.generic)) else torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(
            f"parameter {name!r} is not an array of real numbers",
            where=f"parameter {name!r}",
            expected="a tensor, an array, or a list of real numbers",
            got="complex numbers" if "complex" in str(error) else type(value).__name__,
            mend=REAL_PARTS if "complex" in str(error) else NUMBERS,
        ) from error


def _start(warm_start: Any) -> Tensor:
    """The primal-dual vector in a warm start: a `Solution`, of torch or not, or what it holds."""
    z = getattr(warm_start, "warm_start", warm_start)
    return torch.as_tensor(z).detach().to(device="cpu", dtype=torch.float64)
