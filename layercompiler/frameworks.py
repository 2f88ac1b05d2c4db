"""The frameworks by name, and where each keeps its layer classes; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from layercompiler.errors import MissingDependencyError, OptionError, nearest

FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")


def checked(framework: str) -> str:
    """The name of an installed framework.

    Raises:
        OptionError: Not one of the four frameworks.
        MissingDependencyError: The framework is not installed.
    """
    name = str(framework).lower()
    if name not in FRAMEWORKS:
        raise OptionError(
            "unknown framework" if framework else "no framework is named",
            where="the second argument of `export`",
            expected=f"one of {list(FRAMEWORKS)}",
            got=repr(framework) if framework else "none",
            mend=nearest(name, FRAMEWORKS, "layercompiler.export(problem, 'torch', ...)"),
        )
    if importlib.util.find_spec(name) is None:
        raise MissingDependencyError(f"framework '{name}' is not installed", mend=f"pip install 'layercompiler[{name}]'")
    return name


def layer(compiled: Any, framework: str) -> Any:
    """What was compiled as a layer of a framework.

    Args:
        compiled: Has `layer_kind`, the module of its layers and the class in it, "discrete.DiscreteLayer" for instance. Each framework's
            folder has such a module, and numpy's are in `plan`.
        framework: Its name.

    Raises:
        OptionError: Not one of the four frameworks.
        MissingDependencyError: The framework is not installed.
    """
    name = checked(framework)
    module, _, kind = compiled.layer_kind.rpartition(".")
    return getattr(importlib.import_module(f"layercompiler.{'plan' if name == 'numpy' else name}.{module}"), kind)(compiled)
