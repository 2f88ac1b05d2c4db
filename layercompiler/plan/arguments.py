"""Arguments of a call: binding by position or name, shapes and broadcasting, types, finiteness, declared domains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler.errors import DtypeError, NonFiniteInputError, ParameterDomainError, ShapeError, nearest
from layercompiler.programs.cone import ConeProgram, ParameterSpec

REAL_PARTS = "pass the real part, or real and imaginary parts as separate parameters"
NUMBERS = "pass an array or a tensor of numbers"


@dataclass(frozen=True)
class Values:
    """Checked arguments of one call.

    Attributes:
        batch: Broadcast batch shape; `count` is its number of instances.
        shapes: Shapes of the arguments as given.
        flat: Per parameter (1 or count, size), float64, C order; non-finite instances are set to zero.
        finite: (count,) bool, False where an argument of the instance holds NaN or an infinity, or has no logarithm where it needs one.
    """

    batch: tuple[int, ...]
    count: int
    shapes: tuple[tuple[int, ...], ...]
    flat: tuple[np.ndarray, ...]
    finite: np.ndarray

    def flatten(self, array: np.ndarray, parameter: ParameterSpec) -> np.ndarray:
        """(1 or count, size) rows of an array of a parameter's argument shape."""
        return _rows(array, parameter, self.batch, self.count)


class Arguments:
    """Reads the arguments of one program's calls."""

    def __init__(self, program: ConeProgram) -> None:
        self.parameters = program.parameters
        self.names = [p.name for p in self.parameters]
        self.logged = {c.parameter for c in program.channels if c.log}

    def bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """Values in parameter order; see `CompiledProblem.arguments`."""
        values: dict[str, Any] = dict(zip(self.names, args, strict=False))
        if len(args) > len(self.names) or (not kwargs and len(args) != len(self.names)):
            raise ShapeError(
                f"the layer takes {len(self.names)} parameters",
                expected=f"{len(self.names)} ({', '.join(f'{p.name} {p.shape}' for p in self.parameters)})",
                got=f"{len(args)}",
                mend="pass one value per parameter, in this order or by name",
            )
        for name, value in kwargs.items():
            if name not in self.names:
                raise ShapeError(
                    f"the layer has no parameter '{name}'",
                    expected=f"some of {self.names}",
                    got=f"'{name}'",
                    mend=nearest(name, self.names, "`layer.compiled.parameters` lists them; settings go to `options` of the layer"),
                )
            if name in values:
                raise ShapeError(f"parameter '{name}' is given twice, by position and by name", mend="give it once")
            values[name] = value
        missing = [name for name in self.names if name not in values]
        if missing:
            raise ShapeError(
                f"parameters {missing} are missing",
                expected=f"{len(self.names)}",
                got=f"{len(values)}",
                mend="pass them by name or position",
            )
        return [values[name] for name in self.names]

    def batch_shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Broadcast batch shape; see `CompiledProblem.batch_shape`."""
        if len(shapes) != len(self.parameters):
            raise ShapeError(f"the layer takes {len(self.parameters)} parameters", expected=f"{len(self.parameters)}", got=f"{len(shapes)}")
        leads = []
        for p, shape in zip(self.parameters, shapes, strict=True):
            k = len(p.shape)
            if len(shape) < k or tuple(shape[len(shape) - k :]) != p.shape:
                raise ShapeError(
                    f"parameter '{p.name}' has the wrong shape",
                    where=f"parameter '{p.name}'",
                    expected=f"{p.shape} after any batch dimensions",
                    got=f"{tuple(shape)}",
                    mend=f"its shape must end in {p.shape}; leading dimensions are the batch",
                )
            leads.append(tuple(shape[: len(shape) - k]))
        try:
            return np.broadcast_shapes(*leads)
        except ValueError:
            raise ShapeError(
                "the batch shapes of the parameters do not broadcast",
                where=", ".join(f"'{p.name}' has batch {lead}" for p, lead in zip(self.parameters, leads, strict=True)),
                expected="equal batch dimensions, or 1, or none (numpy broadcasting)",
                got=" and ".join(str(lead) for lead in sorted(set(leads))),
                mend="insert dimensions of 1 where a parameter should be repeated, as in p[:, None]",
            ) from None

    def read(self, arrays: Sequence[Any], check: bool, raise_nonfinite: bool) -> Values:
        """Convert and check the arrays of a call."""
        converted = [real(p.name, a) for p, a in zip(self.parameters, arrays, strict=True)]
        shapes = tuple(a.shape for a in converted)
        batch = self.batch_shape(shapes)
        count = math.prod(batch)
        finite = np.ones(count, bool)
        flat = []
        for position, (p, a, given) in enumerate(zip(self.parameters, converted, arrays, strict=True)):
            lead = a.shape[: a.ndim - len(p.shape)]
            logged = position in self.logged
            if p.attributes and (check or (logged and raise_nonfinite)):
                check_domain(p, a, lead, getattr(given, "dtype", np.dtype(float)))
            values = _rows(a, p, batch, count)
            flat.append(values)
            with np.errstate(all="ignore"):
                sums = values.sum(axis=1)  # a NaN or an infinity anywhere shows in the sum; sums that overflow are looked at again
            if logged or not np.isfinite(sums).all():
                good = np.isfinite(values).all(axis=1)
                if logged:  # the logarithm of the others is not finite
                    good &= (values > 0).all(axis=1)
                if not good.all():
                    if raise_nonfinite:
                        _raise_nonfinite(p, values, good, lead)
                    finite &= good
                    flat[-1] = np.where(good[:, None], values, 0.0)
        return Values(batch, count, shapes, tuple(flat), finite)


def starts(init: Any, host: Callable[[Any], Any] = np.asarray) -> dict[str, Any] | None:
    """Where to start, by variable; None for the declared starts.

    Args:
        init: What a caller gave.
        host: Makes an array of each start.

    Raises:
        ShapeError: It is no mapping.
    """
    if init is None:
        return None
    if not isinstance(init, Mapping):
        raise ShapeError(
            "starts are given by the names of variables",
            where="init",
            expected="a dict from names to arrays",
            got=type(init).__name__,
            mend="init={'x': [1.0, 0.0]}, for instance",
        )
    return {name: host(value) for name, value in init.items()}


def _rows(array: np.ndarray, parameter: ParameterSpec, batch: tuple[int, ...], count: int) -> np.ndarray:
    """One row per instance, or a single one where the whole batch shares the array; no row in an empty batch."""
    lead = array.shape[: array.ndim - len(parameter.shape)]
    if count and math.prod(lead) == 1:
        return array.reshape(1, parameter.size)
    return np.broadcast_to(array, (*batch, *parameter.shape)).reshape(count, parameter.size)


def real(name: str, value: Any) -> np.ndarray:
    """The value of a parameter as a float64 array.

    Raises:
        DtypeError: It holds something else than real numbers.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype == np.float64:
        return array
    if array.dtype.kind not in "fiub":
        raise DtypeError(
            f"parameter '{name}' is not an array of real numbers",
            where=f"parameter '{name}'",
            expected="a real dtype (float or int)",
            got="complex " + str(array.dtype) if array.dtype.kind == "c" else f"dtype {array.dtype}",
            mend=REAL_PARTS if array.dtype.kind == "c" else NUMBERS,
        )
    return array.astype(np.float64)


def _raise_nonfinite(parameter: ParameterSpec, values: np.ndarray, good: Any, lead: tuple[int, ...]) -> None:
    bad = np.flatnonzero(~good)
    kind = "NaN" if np.isnan(values[bad]).any() else "an infinity"
    places = [tuple(int(j) for j in np.unravel_index(i, lead)) for i in bad] if lead and len(good) > 1 else []
    raise NonFiniteInputError(
        f"parameter '{parameter.name}' holds {kind}",
        where=f"parameter '{parameter.name}'" + (f", batch index {_listed(places)}" if places else ""),
        expected="finite numbers",
        got=kind,
        mend="mend the values, or export with on_error='flag' to keep the other instances",
    )


def _listed(places: Sequence[tuple[int, ...]]) -> str:
    shown = ", ".join(str(p[0]) if len(p) == 1 else str(p) for p in places[:8])
    return shown + (f", ... ({len(places)} in all)" if len(places) > 8 else "")


def check_domain(parameter: ParameterSpec, a: np.ndarray, lead: tuple[int, ...], dtype: Any) -> None:
    """Raise where values violate the declared attributes; NaN passes (it is reported as such)."""
    eps = 1e3 * float(np.finfo(dtype).eps) if np.dtype(dtype if isinstance(dtype, np.dtype) else float).kind == "f" else 1e-9
    k = len(parameter.shape)
    inner = tuple(range(a.ndim - k, a.ndim))
    scale = np.abs(a).max(initial=0.0) if a.size else 0.0
    tolerance = eps * (scale if np.isfinite(scale) else 1.0)
    for attribute in parameter.attributes:
        bad = _violations(attribute, a, inner, tolerance)
        if bad is not None and bad.any():
            places = [tuple(int(j) for j in p) for p in np.argwhere(bad)] if lead else []
            raise ParameterDomainError(
                f"parameter '{parameter.name}' was declared {attribute} but its value is not",
                where=f"parameter '{parameter.name}'" + (f", batch index {_listed(places)}" if places else ""),
                expected=attribute,
                got=f"smallest entry {np.nanmin(a):.3g}, largest {np.nanmax(a):.3g}",
                mend="mend the value, or pass options=dict(check_domain=False) to skip this check",
            )


def _violations(attribute: str, a: np.ndarray, inner: tuple[int, ...], tolerance: float) -> Any:
    match attribute:
        case "nonneg":
            return (a < -tolerance).any(axis=inner)
        case "nonpos":
            return (a > tolerance).any(axis=inner)
        case "pos":
            return (a <= 0).any(axis=inner)
        case "neg":
            return (a >= 0).any(axis=inner)
        case "symmetric":
            return (np.abs(a - a.swapaxes(-1, -2)) > tolerance).any(axis=inner)
        case "diag":
            return (np.abs(a * (1 - np.eye(a.shape[-1]))) > tolerance).any(axis=inner)
        case "PSD" | "NSD":
            asymmetric = (np.abs(a - a.swapaxes(-1, -2)) > tolerance).any(axis=inner)
            signed = np.where(np.isfinite(a).all(axis=inner, keepdims=True), a if attribute == "PSD" else -a, 0.0)
            n = a.shape[-1]
            try:
                np.linalg.cholesky(signed + (n * tolerance + 1e-300) * np.eye(n))
                return asymmetric
            except np.linalg.LinAlgError:
                return asymmetric | (np.linalg.eigvalsh(signed)[..., 0] < -n * tolerance)
    return None
