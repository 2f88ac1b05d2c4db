"""Engines: one file each behind a registry; all take the standard form and answer with a rough (x, y, s)."""

from layercompiler.solvers.engine import Engine, Options, Raw, engine, engine_names, register

__all__ = ["Engine", "Options", "Raw", "engine", "engine_names", "register"]
