"""Names for compiled problems: an operator of a traced graph carries a string, and finds the problem again in any process.

A name depends on the problem and the options alone. So unpickling (a DataLoader worker, a spawned DDP process, `torch.load`)
registers the same name again, and a graph that was traced elsewhere finds it.
"""

from __future__ import annotations

import hashlib
from typing import Any
from weakref import WeakValueDictionary

from layercompiler.errors import UnsupportedTransformError

_live: WeakValueDictionary[str, Bound] = WeakValueDictionary()
_traced: dict[str, Bound] = {}


class Bound:
    """A compiled problem with the options of its calls, under the name that operators carry.

    Args:
        compiled: The compiled problem.
        options: Options of every solve, or None for those of the problem.
    """

    __slots__ = ("__weakref__", "compiled", "name", "options")

    def __init__(self, compiled: Any, options: Any = None) -> None:
        self.compiled, self.options = compiled, options
        self.name = f"{compiled.fingerprint}-{_digest(compiled, options)}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Bound:
        return self  # immutable

    def __reduce__(self) -> tuple[Any, ...]:
        return bind, (self.compiled, self.options)


def _digest(compiled: Any, options: Any) -> str:
    settings = (compiled.solver, compiled.on_error, options or compiled.options)
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:12]


def bind(compiled: Any, options: Any = None) -> Bound:
    """Register `compiled` with `options`; an equal one that is already known is returned instead.

    The registry holds it weakly: it lives as long as a layer does.
    """
    bound = Bound(compiled, options)
    return _live.setdefault(bound.name, bound)


def find(name: str) -> Bound:
    """The problem that `name` stands for.

    Raises:
        UnsupportedTransformError: No such problem is loaded in this process.
    """
    try:
        return _live[name]
    except KeyError:
        raise UnsupportedTransformError(
            "a traced graph names a compiled problem that this process does not have",
            where=f"problem {name!r}",
            mend="make the same layer (export the problem, or unpickle or load the layer) before the graph runs, and keep it",
        ) from None


def pin(name: str) -> None:
    """Keep the problem for the life of the process: a graph was traced with its name, and holds nothing but that name."""
    _traced[name] = find(name)
