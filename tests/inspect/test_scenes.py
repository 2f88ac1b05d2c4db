"""Files of pose graphs and bundle adjustments come back as they were written; damaged ones are refused."""

import numpy as np
import pytest

from layercompiler.errors import StoreError
from layercompiler.inspect.scenes import Bundle, PoseGraph, read_bal, read_g2o, write_bal, write_g2o


def _graph(group):
    rng = np.random.default_rng(0)

    def poses(n):
        if group == "SE2":
            angle = rng.uniform(-3, 3, n)
            return np.concatenate([np.cos(angle)[:, None], np.sin(angle)[:, None], rng.standard_normal((n, 2))], axis=1)
        q = rng.standard_normal((n, 4))
        return np.concatenate([q / np.linalg.norm(q, axis=1, keepdims=True), rng.standard_normal((n, 3))], axis=1)

    d = 3 if group == "SE2" else 6
    root = rng.standard_normal((6, d, d))
    return PoseGraph(group, poses(5), rng.integers(0, 5, (6, 2)), poses(6), root @ root.swapaxes(1, 2), (0, 2))


@pytest.mark.parametrize("group", ["SE2", "SE3"])
def test_pose_graphs_come_back(group, tmp_path):
    graph = _graph(group)
    write_g2o(tmp_path / "graph.g2o", graph)
    again = read_g2o(tmp_path / "graph.g2o")
    assert (again.group, again.fixed) == (graph.group, graph.fixed)
    np.testing.assert_array_equal(again.edges, graph.edges)
    for name in ("poses", "measured", "information"):
        np.testing.assert_allclose(getattr(again, name), getattr(graph, name), atol=1e-14)


def test_vertices_may_have_any_numbers(tmp_path):
    text = "# a comment\nVERTEX_SE2 7 1 2 0.5\nVERTEX_SE2 3 0 0 0\nEDGE_SE2 3 7 1 2 0.5 1 0 0 2 0 3\n"
    (tmp_path / "a.g2o").write_text(text)
    graph = read_g2o(tmp_path / "a.g2o")
    np.testing.assert_array_equal(graph.edges, [[0, 1]])
    np.testing.assert_allclose(graph.poses[1], [np.cos(0.5), np.sin(0.5), 1, 2])
    np.testing.assert_array_equal(graph.information[0], np.diag([1.0, 2, 3]))


@pytest.mark.parametrize(
    "text",
    [
        "VERTEX_XY 0 1 2\n",
        "VERTEX_SE2 0 1 2\n",
        "VERTEX_SE2 0 1 2 x\n",
        "",
        "VERTEX_SE2 0 0 0 0\nEDGE_SE2 0 1 1 2 0.5 1 0 0 2 0 3\n",
        "VERTEX_SE2 0 0 0 0\nVERTEX_SE3:QUAT 1 0 0 0 0 0 0 1\n",
    ],
)
def test_damaged_pose_graphs_are_refused(text, tmp_path):
    (tmp_path / "a.g2o").write_text(text)
    with pytest.raises(StoreError):
        read_g2o(tmp_path / "a.g2o")


def test_bundles_come_back_and_damaged_ones_are_refused(tmp_path):
    rng = np.random.default_rng(1)
    seen = np.stack([rng.integers(0, 3, 8), rng.integers(0, 4, 8)], axis=1)
    bundle = Bundle(rng.standard_normal((3, 9)), rng.standard_normal((4, 3)), seen, rng.standard_normal((8, 2)))
    path = tmp_path / "problem.txt"
    write_bal(path, bundle)
    again = read_bal(path)
    for name in ("cameras", "points", "seen", "pixels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(bundle, name))
    for text in ("1 1", "1 1 1 0 0 1 1", "a b c", "1 1 1 5 0 0.1 0.2 " + "0 " * 12):
        path.write_text(text)
        with pytest.raises(StoreError):
            read_bal(path)
