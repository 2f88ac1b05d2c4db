"""A registry by name: built-in kinds are found by file name, others register themselves."""

from __future__ import annotations

import importlib
from typing import Any, Generic, TypeVar

from layercompiler.errors import OptionError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes under their `name`.

    Args:
        what: What they are, for messages.
        package: The package whose modules define the built-in ones.
        built_in: The modules of that package.
    """

    def __init__(self, what: str, package: str, built_in: tuple[str, ...]) -> None:
        self.what, self.package, self.built_in = what, package, built_in
        self._kinds: dict[str, Any] = {}

    def register(self, kind: Any) -> Any:
        """Make a class known under its `name`; usable as a class decorator."""
        self._kinds[kind.name] = kind
        return kind

    def names(self) -> tuple[str, ...]:
        """All known names."""
        for module in self.built_in:
            importlib.import_module(f"{self.package}.{module}")
        return tuple(self._kinds)

    def find(self, name: str) -> Any:
        """The class of a name.

        Raises:
            OptionError: There is none.
        """
        names = self.names()
        if name not in names:
            raise OptionError(
                f"unknown {self.what} {name!r}", expected=f"one of {sorted(names)}", got=repr(name), mend=nearest(name, names)
            )
        return self._kinds[name]
