"""The torch layer: tensors of any dtype and device in and out around the operators."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layercompiler.errors import DtypeError, InputError, StoreError, UnsupportedTransformError
from layercompiler.status import Info
from layercompiler.torch import host, operators
from layercompiler.torch.registry import Bound, bind


@dataclass(frozen=True)
class Solution:
    """The answer of `Layer.solve`: named tensors and what happened to each instance.

    Attributes:
        outputs: The layer's outputs in their order, each (batch..., *shape), in the dtype and on the device of the inputs;
            gradients flow through them as through a call of the layer.
        values: Outputs by name.
        info: Per-instance facts as numpy arrays of the batch shape.
        warm_start: A value to hand to a later call; its content is private.
    """

    outputs: tuple[Tensor, ...]
    values: Mapping[str, Tensor]
    info: Info
    warm_start: Any = field(default=None, repr=False)

    @property
    def status(self) -> Tensor:
        """`layercompiler.Status` codes, batch shape, int8."""
        return torch.from_numpy(np.array(self.info.status))

    @property
    def residual(self) -> Tensor:
        """Relative residual of the optimality conditions, batch shape, float64."""
        return torch.from_numpy(np.array(self.info.residual))


class Layer(torch.nn.Module):
    """A compiled problem as a torch module: parameters in, solution out, differentiable.

    Args:
        compiled: The compiled problem. It is structure, not state: `state_dict` holds its fingerprint and no data.
        options: Options of every solve; None keeps those of the compiled problem.

    Example:
        >>> import cvxpy as cp, layercompiler as lc, torch
        >>> x, c = cp.Variable(2), cp.Parameter(2)
        >>> layer = lc.export(cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0]), "torch")
        >>> c = torch.tensor([1.0, -1.0], requires_grad=True)
        >>> (y,) = layer(c)
        >>> y.sum().backward()
        >>> [round(g, 6) for g in c.grad.tolist()]
        [1.0, 0.0]

    Differentiability:
        Reverse and forward mode and their mixtures up to order two; a third derivative raises UnsupportedTransformError.
        Failed instances (with on_error="flag") are NaN, with zero derivatives.

    Cost:
        The problem is solved on the host in float64, whatever the dtype and the device of the tensors are.
    """

    def __init__(self, compiled: Any, *, options: Any = None) -> None:
        super().__init__()
        self._bound = bind(compiled, options)

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
            options: Options of this call only.
            **named: Parameters by name.

        Returns:
            One tensor per output, (batch..., *shape), in the dtype (the widest floating one) and on the device of the tensors.

        Raises:
            ShapeError: A count, a name or a shape is wrong.
            SolveError: An instance has no solution or could not be solved, and the layer is not told to flag it.
        """
        return self._run(tensors, named, warm_start, options)[0]

    def solve(self, *tensors: Any, warm_start: Any = None, options: Any = None, **named: Any) -> Solution:
        """Solve, and tell what happened to each instance; the arguments are those of a call.

        Raises:
            UnsupportedTransformError: Inside torch.compile or a torch.func transform, where there is no per-instance information.
        """
        outputs, z = self._run(tensors, named, warm_start, options)
        evaluation = host.recall(z)
        if evaluation is None:
            raise UnsupportedTransformError(
                "solve() has no per-instance information inside torch.compile, torch.export or a torch.func transform",
                mend="call the layer itself there, and solve() outside",
            )
        names = [o.name for o in self.compiled.outputs]
        return Solution(outputs, dict(zip(names, outputs, strict=True)), evaluation.info, evaluation)

    def _run(self, tensors: tuple[Any, ...], named: dict[str, Any], warm_start: Any, options: Any) -> tuple[tuple[Tensor, ...], Tensor]:
        compiled = self._bound.compiled
        if named or len(tensors) != len(compiled.parameters):
            tensors = compiled.arguments(tensors, named)
        bound = self._bound if options is None else bind(compiled, options)
        dtype, device = _kind(tensors)
        theta = [_double(t, p.name) for t, p in zip(tensors, compiled.parameters, strict=True)]
        *outputs, z = operators.solve(theta, warm_start, bound.name)
        if dtype is not torch.float64 or device is not None:
            outputs = [x.to(device=device, dtype=dtype) for x in outputs]
        return tuple(outputs), z

    def extra_repr(self) -> str:
        """One line about the problem, its parameters and its outputs."""
        return repr(self._bound.compiled)

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
                mend="build the layer from the same problem; its data is not part of the checkpoint",
            )


def _double(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        value = torch.as_tensor(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else _from_python(value, name)
    if value.dtype is torch.float64 and value.is_cpu:
        return value
    if value.is_complex():
        raise DtypeError(
            "a parameter is complex", where=f"parameter {name!r}", expected="a real dtype", got=str(value.dtype), mend="pass real numbers"
        )
    return value.to(device="cpu", dtype=torch.float64)


def _from_python(value: Any, name: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
        return tensor if tensor.is_complex() else torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(
            "a parameter is not an array of numbers", where=f"parameter {name!r}", got=type(value).__name__, mend="pass a tensor"
        ) from error


def _kind(values: Any) -> tuple[torch.dtype, torch.device | None]:
    """Output dtype, and the device that the outputs go to (None: they stay on the host).

    Tensors decide; among none, numpy arrays do. Numbers and lists follow.
    """
    dtype, device = None, None
    for value in values:
        if isinstance(value, Tensor):
            if value.dtype is not dtype and value.is_floating_point():
                dtype = value.dtype if dtype is None else torch.promote_types(dtype, value.dtype)
            if not value.is_cpu:
                if device is not None and value.device != device:
                    raise InputError(
                        "the parameters are on different devices", expected=str(device), got=str(value.device), mend="move them to one"
                    )
                device = value.device
    if dtype is None:
        kinds = [torch.as_tensor(v).dtype for v in values if isinstance(v, (np.ndarray, np.generic)) and v.dtype.kind == "f"]
        dtype = torch.get_default_dtype() if not kinds else functools.reduce(torch.promote_types, kinds)
    return dtype, device
