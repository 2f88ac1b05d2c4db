"""Files of pose graphs (g2o) and of bundle adjustments (BAL), read and written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from layercompiler.errors import StoreError

_TAGS = {"SE2": ("VERTEX_SE2", "EDGE_SE2", 3, 3), "SE3": ("VERTEX_SE3:QUAT", "EDGE_SE3:QUAT", 7, 6)}


@dataclass(frozen=True)
class PoseGraph:
    """A pose graph.

    Attributes:
        group: "SE2" or "SE3".
        poses: (n, 4) cos, sin, x, y; or (n, 7) quaternion w, x, y, z, then the translation: as `layercompiler.SE2` and `SE3` store them.
        edges: (m, 2) which poses each measurement relates.
        measured: (m, 4) or (m, 7): the second pose as seen from the first.
        information: (m, d, d) inverse covariance of each measurement, translation first. In files of SE3 the rotational part belongs to the
            vector part of the quaternion (half the angle); it is kept as it stands.
        fixed: Indices of poses that stay.
    """

    group: str
    poses: np.ndarray = field(repr=False)
    edges: np.ndarray = field(repr=False)
    measured: np.ndarray = field(repr=False)
    information: np.ndarray = field(repr=False)
    fixed: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Bundle:
    """A bundle adjustment in the large.

    Attributes:
        cameras: (n, 9) rotation vector, translation, focal length and two radial distortions: a point X is seen at
            f (1 + k1 |p|^2 + k2 |p|^4) p with p = -(P_x, P_y) / P_z and P = R X + t.
        points: (m, 3).
        seen: (k, 2) camera and point of each observation.
        pixels: (k, 2) where it was seen.

    Source: Agarwal, Snavely, Seitz, Szeliski 2010, "Bundle adjustment in the large".
    """

    cameras: np.ndarray = field(repr=False)
    points: np.ndarray = field(repr=False)
    seen: np.ndarray = field(repr=False)
    pixels: np.ndarray = field(repr=False)


def read_g2o(path: str | Path) -> PoseGraph:
    """Read a pose graph; vertices may have any numbers, and are kept in the order of their numbers.

    Raises:
        StoreError: The file mixes kinds, misses vertices or is malformed.
    """
    vertices: dict[int, list[float]] = {}
    edges: list[tuple[int, int]] = []
    numbers, fixed, groups = [], [], set()
    for row, line in enumerate(Path(path).read_text().splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            if words[0] == "FIX":
                fixed += [int(w) for w in words[1:]]
                continue
            group = next(g for g, tags in _TAGS.items() if words[0] in tags[:2])
            _, edge, size, dof = _TAGS[group]
            groups.add(group)
            if words[0] == edge:
                edges.append((int(words[1]), int(words[2])))
                numbers.append([float(w) for w in words[3:]])
                valid = len(numbers[-1]) == size + dof * (dof + 1) // 2
            else:
                vertices[int(words[1])] = [float(w) for w in words[2:]]
                valid = len(vertices[int(words[1])]) == size
        except (StopIteration, ValueError, IndexError):
            valid = False
        if not valid:
            raise StoreError("a line of the pose graph is malformed or of an unknown kind", where=f"{path}, line {row}", got=line[:60])
    if len(groups) != 1:
        raise StoreError("a pose graph is of one kind", where=str(path), expected="SE2 or SE3", got=str(sorted(groups) or "nothing"))
    group = groups.pop()
    _, _, size, dof = _TAGS[group]
    order = {v: k for k, v in enumerate(sorted(vertices))}
    missing = {v for edge in edges for v in edge} - set(order)
    if missing:
        raise StoreError("edges name vertices that are not there", where=str(path), got=str(sorted(missing)[:8]))
    table = np.array(numbers, dtype=float).reshape(len(edges), -1)
    information = np.zeros((len(edges), dof, dof))
    i, j = np.triu_indices(dof)
    information[:, i, j] = information[:, j, i] = table[:, size:]
    poses = np.array([vertices[v] for v in order], dtype=float).reshape(len(order), size)
    return PoseGraph(
        group,
        _stored(group, poses),
        np.array([[order[a], order[b]] for a, b in edges], dtype=int).reshape(-1, 2),
        _stored(group, table[:, :size]),
        information,
        tuple(order[v] for v in fixed if v in order) or (0,),
    )


def write_g2o(path: str | Path, graph: PoseGraph) -> None:
    """Write a pose graph, in full precision."""
    vertex, edge, size, dof = _TAGS[graph.group]
    i, j = np.triu_indices(dof)
    lines = [f"{vertex} {k} {_join(p)}" for k, p in enumerate(_written(graph.group, graph.poses))]
    lines += [f"FIX {k}" for k in graph.fixed]
    for (a, b), z, information in zip(graph.edges, _written(graph.group, graph.measured), graph.information, strict=True):
        lines.append(f"{edge} {a} {b} {_join(z[:size])} {_join(information[i, j])}")
    Path(path).write_text("\n".join(lines) + "\n")


def read_bal(path: str | Path) -> Bundle:
    """Read a bundle adjustment.

    Raises:
        StoreError: The numbers do not fit the head of the file.
    """
    words = Path(path).read_text().split()
    try:
        n, m, k = (int(w) for w in words[:3])
        numbers = np.array(words[3:], dtype=float)
    except ValueError as error:
        raise StoreError("not a bundle adjustment", where=str(path), expected="numbers", got=str(error)) from error
    if len(numbers) != 4 * k + 9 * n + 3 * m:
        raise StoreError(
            "the file does not hold what its head says", where=str(path), expected=str(4 * k + 9 * n + 3 * m), got=str(len(numbers))
        )
    rows = numbers[: 4 * k].reshape(k, 4)
    seen = rows[:, :2].astype(int)
    if k and (seen.min() < 0 or np.any(seen.max(axis=0) >= (n, m))):
        raise StoreError("an observation names a camera or a point that is not there", where=str(path))
    rest = numbers[4 * k :]
    return Bundle(rest[: 9 * n].reshape(n, 9), rest[9 * n :].reshape(m, 3), seen, rows[:, 2:])


def write_bal(path: str | Path, bundle: Bundle) -> None:
    """Write a bundle adjustment, in full precision."""
    lines = [f"{len(bundle.cameras)} {len(bundle.points)} {len(bundle.seen)}"]
    lines += [f"{a} {b} {_join(uv)}" for (a, b), uv in zip(bundle.seen, bundle.pixels, strict=True)]
    lines += [repr(float(x)) for x in np.concatenate([bundle.cameras.reshape(-1), bundle.points.reshape(-1)])]
    Path(path).write_text("\n".join(lines) + "\n")


def _join(numbers: np.ndarray) -> str:
    return " ".join(repr(float(x)) for x in numbers)


def _stored(group: str, rows: np.ndarray) -> np.ndarray:
    """Numbers of a file as we store them."""
    if group == "SE2":
        return np.stack([np.cos(rows[:, 2]), np.sin(rows[:, 2]), rows[:, 0], rows[:, 1]], axis=1)
    q = rows[:, [6, 3, 4, 5]]
    return np.concatenate([q / np.linalg.norm(q, axis=1, keepdims=True), rows[:, :3]], axis=1)


def _written(group: str, rows: np.ndarray) -> np.ndarray:
    """Numbers as we store them as they stand in a file."""
    if group == "SE2":
        return np.stack([rows[:, 2], rows[:, 3], np.arctan2(rows[:, 1], rows[:, 0])], axis=1)
    return np.concatenate([rows[:, 4:], rows[:, [1, 2, 3, 0]]], axis=1)
