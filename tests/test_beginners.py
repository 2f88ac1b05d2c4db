"""Mistakes of the first day: each gets an error of ours that says what is wrong, what was expected, and how to mend it."""

import importlib
import sys

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler import errors
from tests.bindings import FRAMEWORKS

A, b, x = cp.Parameter((6, 3), name="A"), cp.Parameter(6, name="b"), cp.Variable(3, name="x")
LEAST = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
curve, seen = cp.Variable(2, name="curve"), cp.Parameter(5, name="seen")
CURVE = cp.Problem(cp.Minimize(cp.sum_squares(curve[0] * cp.exp(curve[1] * np.linspace(0, 1, 5)) - seen)))
cost, choice = cp.Parameter(4, name="cost"), cp.Variable(4, boolean=True, name="choice")
PICK = cp.Problem(cp.Maximize(cost @ choice), [cp.sum(choice) <= 2])
DECAY = lc.LeastSquares({"x": lc.Euclidean(2)}, [lc.factor(lambda x, y: x - y, on="x", data="y")], {"y": (2,)})

KINDS = {
    "convex": (LEAST, {}, [np.ones((6, 3)), np.ones(6)]),
    "matrices": (lc.QP(2, 3), {}, [np.eye(2), np.ones(2), np.ones((3, 2)), np.ones(3)]),
    "nonlinear": (CURVE, {}, [np.ones(5)]),
    "least squares": (DECAY, {}, [np.ones(2)]),
    "discrete": (PICK, {"estimator": lc.Identity()}, [np.ones(4)]),
}


@pytest.fixture(params=[(f, k) for f in FRAMEWORKS for k in KINDS], ids="-".join)
def made(request):
    framework, kind = request.param
    if framework != "numpy":
        pytest.importorskip(framework)
    jax = pytest.importorskip("jax")
    problem, settings, values = KINDS[kind]
    with jax.enable_x64(True):
        yield lc.export(problem, framework, **settings), values


def refused(kind, call, *args, **named):
    with pytest.raises(kind) as caught:
        call(*args, **named)
    error = caught.value
    assert error.what
    assert error.expected or error.where
    assert error.mend, str(error)
    return error


def test_wrong_calls(made):
    layer, values = made
    refused(errors.ShapeError, layer, *values, values[-1])
    refused(errors.ShapeError, layer, *values[:-1])
    assert "has the wrong shape" in refused(errors.ShapeError, layer, *values[:-1], np.ones((*values[-1].shape, 7))).what
    name = next(iter(getattr(p, "name", p) for p in _parameters(layer)))
    assert f"did you mean '{name}'" in refused(errors.ShapeError, layer, *values[1:], **{f"{name}_": values[0]}).mend


def test_numbers_that_are_none(made):
    """A complex number is refused, not cut to its real part; a text is no number."""
    layer, values = made
    assert "real part" in refused(errors.DtypeError, layer, *values[:-1], values[-1] * 1j).mend
    refused(errors.InputError, layer, *values[:-1], "ones")


def test_every_layer_reports(made):
    layer, _ = made
    assert layer.report() == layer.compiled.report()
    assert len(layer.report().splitlines()) >= 3


def _parameters(layer):
    return getattr(layer.compiled, "parameters", None) or layer.compiled.problem.parameters


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("problem", [CURVE, DECAY], ids=["nonlinear", "least squares"])
def test_starts(framework, problem):
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        layer = lc.export(problem, framework)
        value, name = (np.ones(5), "curve") if problem is CURVE else (np.ones(2), "x")
        refused(errors.ShapeError, layer, value, init=[1.0, 0.0])
        assert f"did you mean '{name}'" in refused(errors.ShapeError, layer, value, init={name.upper(): [1.0, 0.0]}).mend


def test_the_framework():
    refused(errors.OptionError, lc.export, LEAST)
    assert "did you mean 'torch'" in refused(errors.OptionError, lc.export, LEAST, "pytorch").mend


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (errors.ParameterMismatchError, {"parameters": A}, "parameters=[A]"),
        (errors.ParameterMismatchError, {"variables": x}, "variables=[x]"),
        (errors.ParameterMismatchError, {"parameters": ["A", "b"]}, "cvxpy.Parameter objects"),
        (errors.ParameterMismatchError, {"parameters": [A]}, "list it in `parameters`"),
        (errors.ParameterMismatchError, {"variables": [curve]}, "remove 'curve'"),
        (errors.ParameterMismatchError, {"variables": ["x"]}, "cvxpy objects"),
        (errors.OptionError, {"solver": "OSQP"}, "leave `solver` out"),
        (errors.OptionError, {"solver": "clarabell"}, "did you mean 'clarabel'"),
        (errors.OptionError, {"options": {"toleranc": 1e-8}}, "did you mean 'tolerance'"),
        (errors.OptionError, {"on_error": "flags"}, "did you mean 'flag'"),
        (errors.OptionError, {"estimator": "imle"}, "IMLE()"),
    ],
)
def test_settings(kind, settings, words):
    assert words in refused(kind, lc.export, LEAST, "numpy", **settings).mend


@pytest.mark.parametrize("given", [(), (0,), (None, None)])
def test_sizes_of_a_qp(given):
    refused(errors.BuildError, lc.QP, *given)


@pytest.mark.parametrize("framework", FRAMEWORKS[1:])
def test_a_framework_that_is_missing(framework, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    for room in [m for m in sys.modules if m.startswith(f"layercompiler.{framework}")]:
        monkeypatch.delitem(sys.modules, room)
    for call in (lambda: lc.export(LEAST, framework), lambda: importlib.import_module(f"layercompiler.{framework}")):
        with pytest.raises(errors.MissingDependencyError) as caught:
            call()
        assert caught.value.mend == f"pip install 'layercompiler[{framework}]'"
