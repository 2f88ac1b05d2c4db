"""What the parameters of a least-squares program must be: positive radii, scales that are not negative, elements of groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercompiler import arrays, manifolds
from layercompiler.errors import ParameterDomainError
from layercompiler.programs.least_squares import LeastSquaresProgram

_GROUPS = {g.name: g for g in (manifolds.SO2, manifolds.SE2, manifolds.SO3, manifolds.SE3)}


@dataclass(frozen=True)
class Domain:
    """Where the values of one parameter must lie.

    Attributes:
        parameter: Its position.
        name: Its name.
        shape: Its shape.
        kind: "pos", "nonneg" or the name of a group.
        role: What it is used as, for messages.
    """

    parameter: int
    name: str
    shape: tuple[int, ...]
    kind: str
    role: str

    def outside(self, xp: Any, a: Any) -> Any:
        """Which instances of values (batch..., *shape) lie outside, (batch...) bool."""
        group = _GROUPS.get(self.kind)
        bad = ~(a > 0) if self.kind == "pos" else a < 0 if group is None else group.invalid(xp, a)
        inner = len(self.shape) - (group is not None)
        return xp.any(bad, axis=tuple(range(-inner, 0))) if inner else bad


class Domains(tuple[Domain, ...]):
    """The domains of a program's parameters.

    Args:
        program: The program.
        check: Whether all of them are asked for, or only those without which a loss has no meaning.
    """

    check: bool

    def __new__(cls, program: LeastSquaresProgram, check: bool) -> Domains:
        """Of a program."""
        found: dict[tuple[int, str], str] = {}
        for block in program.blocks:
            if block.radius is not None and block.radius.parameter is not None:
                found.setdefault((block.radius.parameter, "pos"), f"the radius of '{block.name}'")
            weight = block.weight
            if check and weight is not None and weight.kind == "scale" and weight.argument.parameter is not None:
                found.setdefault((weight.argument.parameter, "nonneg"), f"the scale of '{block.name}'")
        if check:
            for k, p in enumerate(program.parameters):
                found |= {(k, kind): f"elements of {kind}" for kind in p.attributes if kind in _GROUPS and p.shape and 0 not in p.shape}
        specs = program.parameters
        made = super().__new__(cls, (Domain(k, specs[k].name, specs[k].shape, kind, role) for (k, kind), role in found.items()))
        made.check = check
        return made

    def broken(self, theta: Sequence[np.ndarray]) -> bool:
        """Whether any of some host arrays (batch..., *shape) is outside."""
        host = arrays.get("numpy")
        return any(bool(np.any(d.outside(host, theta[d.parameter]))) for d in self)

    def outside(self, theta: Sequence[np.ndarray], finite: Any = True) -> Any:
        """Which instances have a parameter outside.

        Args:
            theta: Host arrays, (batch..., *shape).
            finite: (batch...) which of them to look at.

        Raises:
            ParameterDomainError: One has, and it is checked.
        """
        host, every = arrays.get("numpy"), np.zeros((), bool)
        for d in self:
            a = theta[d.parameter]
            with np.errstate(all="ignore"):
                bad = np.asarray(d.outside(host, a)) & finite
            if self.check and bad.any():
                places = [tuple(int(k) for k in p) for p in np.argwhere(bad)] if bad.ndim else []
                shown = ", ".join(map(str, places[:8])) + (f", ... ({len(places)} in all)" if len(places) > 8 else "")
                name = d.role if d.name.startswith("derived ") else f"parameter '{d.name}'"
                raise ParameterDomainError(
                    f"{name} is outside of its domain",
                    where=(d.role if name == d.role else f"{name}, {d.role}") + (f", batch index {shown}" if places else ""),
                    expected={"pos": "numbers > 0", "nonneg": "numbers >= 0"}.get(d.kind, "rotations of length one"),
                    got=f"smallest entry {np.nanmin(a):.3g}, largest {np.nanmax(a):.3g}",
                    mend=_MEND.get(d.kind, f"make elements with lc.{d.kind}.exp(...); the order of their numbers is in its docstring"),
                )
            every = every | bad
        return every

    def traced(self, xp: Any, theta: Sequence[Any], batch: tuple[int, ...]) -> Any:
        """(batch...) which instances have a parameter outside, in arrays (batch..., *shape) up to broadcasting that may be traced."""
        bad = xp.zeros(batch) > 0
        for d in self:
            bad = bad | d.outside(xp, xp.stop_gradient(theta[d.parameter]))
        return bad


_MEND = {
    "pos": "keep it positive: learn its logarithm, or what softplus makes of a number",
    "nonneg": "learn its logarithm or its square, or pass options=dict(check_domain=False) to take its absolute value",
}
