"""Discrete layers in a file: the same samples and gradients come back, without CVXPY, and nothing else gets in."""

import json
import subprocess
import sys
import zipfile

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler import errors
from tests.discrete.problems import PROBLEMS, knapsack

ESTIMATORS = {
    "imle": lc.IMLE(samples=3, noise=lc.noise.SumOfGamma(4.0, 20), target_temperature=0.5),
    "adaptive": lc.AdaptiveIMLE(samples=2, output="all"),
    "dbb": lc.DBB(step=2.0),
    "perturbed": lc.Perturbed(samples=4, temperature=0.3),
    "identity": lc.Identity(project="mean"),
}
ORACLES = (
    lc.oracles.TopK(6, 2),
    lc.oracles.DagPath.grid(3, 3),
    lc.oracles.GridPath(3, 2, neighbors=4),
    lc.oracles.Knapsack((3, 5, 1), 6),
    lc.oracles.SpanningTree.complete(4),
    lc.oracles.Tour(4),
    lc.oracles.Ranking(4, normalized=True),
    lc.oracles.Assignment(3),
)


def twin(compiled, tmp_path):
    compiled.save(tmp_path / "layer.npz")
    return lc.load(tmp_path / "layer.npz")


def agree(compiled, other):
    assert other.fingerprint == compiled.fingerprint and other.describe() == compiled.describe()
    arrays = [np.random.default_rng(0).uniform(0.1, 1, (3, *p.shape)) for p in compiled.parameters]
    a, b = compiled.sample(arrays, [5]), other.sample(arrays, [5])
    dy = [np.random.default_rng(1).standard_normal(o.shape) for o in a.outputs]
    for u, v in zip(
        (*a.outputs, *compiled.pull(arrays, a.solutions, a.noise, dy)),
        (*b.outputs, *other.pull(arrays, b.solutions, b.noise, dy)),
        strict=True,
    ):
        np.testing.assert_array_equal(u, v)


@pytest.mark.parametrize("name", PROBLEMS)
def test_programs_come_back(name, tmp_path):
    problem, c, x = PROBLEMS[name]()
    compiled = lc.compile(
        problem, parameters=[c], variables=[x], estimator=ESTIMATORS["imle"], on_error="flag", options={"time_limit": 9.0}
    )
    other = twin(compiled, tmp_path)
    agree(compiled, other)
    assert (other.on_error, other.options.time_limit) == ("flag", 9.0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_come_back(estimator, tmp_path):
    compiled = lc.compile(lc.oracles.TopK(6, 2), estimator=ESTIMATORS[estimator])
    compiled.sample([np.zeros(6)])
    agree(compiled, twin(compiled, tmp_path))


def test_the_state_of_an_adaptive_step_travels(tmp_path):
    compiled = lc.compile(lc.oracles.TopK(6, 2), estimator=lc.AdaptiveIMLE())
    sample = compiled.sample([np.arange(6.0)], [1])
    compiled.pull([np.arange(6.0)], sample.solutions, sample.noise, [np.ones(6) * np.arange(6)])
    other = twin(compiled, tmp_path)
    assert vars(other.estimator.state) | {"_lock": 0} == vars(compiled.estimator.state) | {"_lock": 0}
    assert other.estimator.state is not compiled.estimator.state


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: type(oracle).__name__)
def test_named_oracles_come_back(oracle, tmp_path):
    agree(compiled := lc.compile(oracle, estimator=lc.IMLE(samples=2)), twin(compiled, tmp_path))


def test_a_layer_loads_where_cvxpy_is_missing(tmp_path):
    problem, c, x = knapsack()
    compiled = lc.compile(problem, parameters=[c], variables=[x], estimator=lc.IMLE(samples=2))
    compiled.save(tmp_path / "layer.npz")
    code = f"""
import sys
sys.modules["cvxpy"] = None
import numpy as np, layercompiler as lc
layer = lc.load({str(tmp_path / "layer.npz")!r}, "numpy")
np.save({str(tmp_path / "z.npy")!r}, layer(np.linspace(0.1, 1.0, 12), seed=3)[0])
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), compiled.sample([np.linspace(0.1, 1.0, 12)], [3]).outputs[0])


def test_a_loaded_layer_of_a_framework(tmp_path):
    torch = pytest.importorskip("torch")
    problem, c, x = knapsack()
    compiled = lc.compile(problem, parameters=[c], variables=[x], estimator=lc.Identity())
    compiled.save(tmp_path / "layer.npz")
    theta = torch.linspace(0.1, 1.0, 12, requires_grad=True)
    (z,) = lc.load(tmp_path / "layer.npz", "torch")(theta)
    z.sum().backward()
    assert theta.grad is not None and z.shape == (12,)


def test_the_users_own_code_is_not_saved(tmp_path):
    class Own(lc.noise.Noise):
        name = "own"

        def sample(self, rng, shape):
            return rng.random(shape)

    for compiled in (
        lc.compile(lc.BlackBox(lambda c: c > 0), estimator=lc.DBB()),
        lc.compile(lc.oracles.TopK(4, 2), estimator=lc.IMLE(noise=Own())),
    ):
        with pytest.raises(errors.StoreError, match="saved"):
            compiled.save(tmp_path / "layer.npz")


def _spoil(path, change):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    raw = parts["header.npy"]
    start = raw.index(b"{", raw.index(b"\n"))
    header = json.loads(raw[start:])
    change(header["settings"]["discrete"])
    with path.open("wb") as file:
        arrays = {name.removesuffix(".npy"): np.load(path.with_suffix(".old"))[name.removesuffix(".npy")] for name in parts}
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        np.savez(file, **arrays)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["estimator"].update(name="exec"),
        lambda d: d["estimator"].update(kind="module"),
        lambda d: d["estimator"]["fields"].update(samples=-3),
        lambda d: d["estimator"]["fields"].update(step="1"),
        lambda d: d["estimator"]["fields"].update(extra=1),
        lambda d: d["estimator"]["fields"].update(noise={"kind": "oracle", "name": "top-k", "fields": {"n": 3, "k": 1}}),
        lambda d: d.update(estimator=None),
        lambda d: d.update(integer=[99]),
        lambda d: d.update(boolean=[0, 0]),
        lambda d: d.update(boolean="all"),
        lambda d: d.pop("integer"),
    ],
)
def test_damaged_files_are_refused(change, tmp_path):
    problem, c, x = knapsack()
    path = tmp_path / "layer.npz"
    lc.compile(problem, parameters=[c], variables=[x], estimator=lc.IMLE()).save(path)
    path.with_suffix(".old").write_bytes(path.read_bytes())
    _spoil(path, change)
    with pytest.raises(errors.StoreError):
        lc.load(path)


@pytest.mark.parametrize(
    "change", [lambda d: d["box"]["solver"]["fields"].update(n=10**9), lambda d: d["box"].update(shape=[7]), lambda d: d.pop("box")]
)
def test_damaged_oracles_are_refused(change, tmp_path):
    path = tmp_path / "layer.npz"
    lc.compile(lc.oracles.TopK(6, 2), estimator=lc.IMLE()).save(path)
    path.with_suffix(".old").write_bytes(path.read_bytes())
    _spoil(path, change)
    with pytest.raises(errors.StoreError):
        lc.load(path)


def test_a_quadratic_program_comes_back(tmp_path):
    pytest.importorskip("pyscipopt")
    c, x = cp.Parameter(3), cp.Variable(3, integer=True)
    compiled = lc.compile(cp.Problem(cp.Minimize(cp.sum_squares(x) + c @ x), [x >= -3, x <= 3]), estimator=lc.IMLE(samples=2))
    agree(compiled, twin(compiled, tmp_path))
