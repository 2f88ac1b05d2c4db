"""Names for compiled problems: an operator of a traced graph carries a string, and finds the problem again in any process.

A name is a digest of the whole problem and the options, and of nothing else. So unpickling (a DataLoader worker, a spawned DDP
process, `torch.load`) registers the same name again, and a graph that was traced elsewhere finds it.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np

from layercompiler.errors import UnsupportedTransformError
from layercompiler.plan.native import Native

_live: WeakValueDictionary[str, Bound] = WeakValueDictionary()
_traced: dict[str, Bound] = {}
_digests: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


class Bound:
    """A compiled problem with the options of its calls, under the name that operators carry.

    Args:
        compiled: The compiled problem.
        options: Options of every solve, or None for those of the problem.

    Attributes:
        name: The name.
        native: The problem as the array interior point takes it, None where it cannot.
        asked: Whether tensors on the host take that path too, because the user asked for it.
        quick: The short way of the problem, see `layercompiler.torch.quick`; None where it has none.
        parameters: Names of the parameters. (torch.compile guards on what it reads: it should not read the problem itself.)
    """

    __slots__ = ("__weakref__", "asked", "compiled", "name", "native", "options", "parameters", "quick")

    def __init__(self, compiled: Any, options: Any = None) -> None:
        self.compiled, self.options = compiled, options
        self.parameters = tuple(p.name for p in compiled.parameters)
        solver = compiled.solver.lower()
        self.native = Native.of(compiled, options) if solver in ("auto", "interior_point") else None
        self.asked = solver == "interior_point" and self.native is not None
        self.name = f"{_digest(compiled)}-{_hash(options or compiled.options)}"
        self.quick: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Bound:
        return self  # immutable

    def __reduce__(self) -> tuple[Any, ...]:
        return bind, (self.compiled, self.options)


def _digest(compiled: Any) -> str:
    if compiled not in _digests:
        _digests[compiled] = _hash((compiled.fingerprint, compiled.solver, compiled.on_error, compiled.program))
    return _digests[compiled]


def _hash(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=12)
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Digest a tree of dataclasses, sequences, arrays and plain values."""
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value))
    elif is_dataclass(value) and not isinstance(value, type):
        digest.update(type(value).__name__.encode())
        for f in fields(value):
            _feed(digest, getattr(value, f.name))
    elif isinstance(value, (tuple, list)):
        digest.update(f"({len(value)}".encode())
        for item in value:
            _feed(digest, item)
    else:  # numbers, strings, None; an executor by its address: it belongs to this process
        digest.update(f"{value!r},".encode())


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
