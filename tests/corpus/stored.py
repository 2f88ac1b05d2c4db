"""The stored references: parameter points, solutions, cotangents, directions, and G[j, k] = d<w_j, x> / d(direction k)."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

import layercompiler as lc
from tests.corpus.problems import REG

SIZES = ("small", "medium")


@dataclass(frozen=True)
class Point:
    theta: list[np.ndarray]
    x: list[np.ndarray]
    cotangents: list[list[np.ndarray]]
    directions: list[list[np.ndarray]]
    G: np.ndarray
    error: float  # relative error estimate of G


@cache
def _store(size):
    file = np.load(Path(__file__).parent / f"{size}.npz", allow_pickle=False)
    return file, json.loads(bytes(file["__meta__"]).decode())


def names(size):
    """Cases that have references of this size."""
    meta = _store(size)[1]
    return [name for name in REG if meta.get(name, {}).get("points")]


@cache
def case(size, name):
    """The case, built at the size of its references."""
    return REG[name].build(_store(size)[1][name]["n"], 0)


@cache
def compiled(size, name, solver="auto"):
    """The case, compiled once for every framework."""
    c = case(size, name)
    return lc.compile(c.problem, parameters=c.parameters, variables=c.variables, solver=solver)


def points(size, name):
    """The stored points of a case."""
    file, meta = _store(size)
    c = case(size, name)
    for i, facts in enumerate(meta[name]["points"]):
        key = f"{name}/{i}"
        G = file[f"{key}/G"]
        yield Point(
            theta=[file[f"{key}/theta/{j}"] for j in range(len(c.parameters))],
            x=[file[f"{key}/x/{j}"] for j in range(len(c.variables))],
            cotangents=[[file[f"{key}/cot/{a}/{j}"] for j in range(len(c.variables))] for a in range(G.shape[0])],
            directions=[[file[f"{key}/dir/{k}/{j}"] for j in range(len(c.parameters))] for k in range(G.shape[1])],
            G=G,
            error=facts["fd_rel_err"],
        )
