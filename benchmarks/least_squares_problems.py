"""The nonlinear least-squares problems of the comparison, as numpy data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Graph:
    """A pose graph for `batch` instances that share their edges.

    Poses and measurements are matrices (batch, n, d + 1, d + 1), weights (batch, edges, dof).
    """

    group: str
    edges: np.ndarray
    truth: np.ndarray
    start: np.ndarray
    measured: np.ndarray
    weights: np.ndarray


def hat(v):
    """Tangents (..., 3 or 6), translation first, as matrices of the algebra."""
    planar = v.shape[-1] == 3
    size = 3 if planar else 4
    out = np.zeros((*v.shape[:-1], size, size))
    out[..., : size - 1, size - 1] = v[..., : size - 1]
    if planar:
        out[..., 1, 0], out[..., 0, 1] = v[..., 2], -v[..., 2]
    else:
        w = v[..., 3:]
        for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            out[..., j, i], out[..., i, j] = w[..., k], -w[..., k]
    return out


def exp(v):
    """Rigid motions of tangents, by scaling and squaring of the series."""
    A = hat(np.asarray(v)) / 2**6
    term = total = np.broadcast_to(np.eye(A.shape[-1]), A.shape)
    for k in range(1, 10):
        term = term @ A / k
        total = total + term
    for _ in range(6):
        total = total @ total
    return total


def pose_graph(group, count, batch, seed=0, noise=0.05):
    """A curved chain with a fifth as many short loops and three long ones."""
    rng = np.random.default_rng(seed)
    dof = 3 if group == "SE2" else 6
    steps = np.zeros((batch, count - 1, dof))
    steps[..., 0] = 1.0
    steps[..., -1] = 0.15 * np.sin(np.arange(count - 1) / 7) + 0.05 * rng.standard_normal((batch, count - 1))
    truth = [np.broadcast_to(np.eye(hat(steps).shape[-1]), (batch, *hat(steps).shape[-2:]))]
    for step in np.moveaxis(exp(steps), 1, 0):
        truth.append(truth[-1] @ step)
    truth = np.stack(truth, axis=1)
    short = rng.integers(0, count - 12, int(0.2 * count))
    loops = np.stack([short, short + rng.integers(3, 12, len(short))], axis=1)
    far = np.stack([rng.integers(0, count // 2, 3), rng.integers(count // 2, count, 3)], axis=1)
    chain = np.stack([np.arange(count - 1), np.arange(1, count)], axis=1)
    edges = np.unique(np.concatenate([chain, loops, far]), axis=0)
    between = np.linalg.inv(truth[:, edges[:, 0]]) @ truth[:, edges[:, 1]]
    measured = between @ exp(noise * rng.standard_normal((batch, len(edges), dof)))
    start = truth @ exp(0.015 * rng.standard_normal((batch, count, dof)))
    start[:, 0] = truth[:, 0]
    return Graph(group, edges, truth, start, measured, np.ones((batch, len(edges), dof)))


@dataclass(frozen=True)
class Curve:
    """y = x0 exp(-x1 t) + x2 with noise, for `batch` instances."""

    t: np.ndarray
    y: np.ndarray
    truth: np.ndarray
    start: np.ndarray


def curve(batch, noise=0.05, seed=0):
    """One hundred samples of a decaying exponential."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 4, 100)
    truth = np.stack([rng.uniform(1, 3, batch), rng.uniform(0.5, 1.5, batch), rng.uniform(-0.5, 0.5, batch)], axis=1)
    y = truth[:, :1] * np.exp(-truth[:, 1:2] * t) + truth[:, 2:] + noise * rng.standard_normal((batch, len(t)))
    return Curve(t, y, truth, np.broadcast_to(np.array([1.0, 1.0, 0.0]), (batch, 3)).copy())


@dataclass(frozen=True)
class Scene:
    """A bundle adjustment: cameras (n, 4, 4) that map the world to the camera, points (m, 3), and what was seen.

    Observation k is of point seen[k, 1] by camera seen[k, 0], at pixels[k] (x, y), with focal length 1; the first `known` cameras
    are known.
    """

    cameras: np.ndarray
    points: np.ndarray
    seen: np.ndarray
    pixels: np.ndarray
    start_cameras: np.ndarray
    start_points: np.ndarray
    known: int = 2


def scene(cameras, points, views=6, noise=1e-3, seed=0):
    """Cameras on an arc around a cloud of points; each point is seen by `views` neighbouring cameras."""
    rng = np.random.default_rng(seed)
    cloud = rng.uniform(-1, 1, (points, 3))
    angle = np.linspace(-1.0, 1.0, cameras)
    turn = exp(np.stack([*[np.zeros(cameras)] * 4, angle, np.zeros(cameras)], axis=1))
    back = exp(np.stack([np.zeros(cameras), np.zeros(cameras), np.full(cameras, 5.0), *[np.zeros(cameras)] * 3], axis=1))
    poses = back @ turn
    views = min(views, cameras)
    first = rng.integers(0, cameras - views + 1, points)
    seen = np.stack([(first[:, None] + np.arange(views)).reshape(-1), np.repeat(np.arange(points), views)], axis=1)
    local = np.einsum("kij,kj->ki", poses[seen[:, 0], :3, :3], cloud[seen[:, 1]]) + poses[seen[:, 0], :3, 3]
    pixels = local[:, :2] / local[:, 2:] + noise * rng.standard_normal((len(seen), 2))
    start = exp(0.02 * rng.standard_normal((cameras, 6))) @ poses
    start[:2] = poses[:2]  # two known cameras leave no gauge
    return Scene(poses, cloud, seen, pixels, start, cloud + 0.05 * rng.standard_normal(cloud.shape))
