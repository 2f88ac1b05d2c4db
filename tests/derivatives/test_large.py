"""Large semidefinite cones: what they may cost, and what happens beyond."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest

import layercompiler as lc
from layercompiler.derivatives import rotation
from layercompiler.errors import DerivativeError

ROOT = Path(__file__).parents[2]


def test_a_matrix_inequality_of_order_80_in_few_variables_is_cheap():
    """d = 3240 rows: d^2 numbers would be 84 MB for each instance and each of a dozen arrays."""
    code = """
        import json, resource, time
        import cvxpy as cp, numpy as np
        import layercompiler as lc
        rng = np.random.default_rng(0)
        def build(k):
            F = rng.standard_normal((5, k, k))
            x, c = cp.Variable(5), cp.Parameter(5)
            inequality = sum(x[i] * (F[i] + F[i].T) for i in range(5)) + k * np.eye(k) >> 0
            return lc.compile(cp.Problem(cp.Minimize(c @ x + 0.1 * cp.sum_squares(x)), [inequality]))
        build(5).evaluate([np.ones((4, 5))]).vjp([np.ones((4, 5))])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        compiled = build(80)
        evaluation = compiled.evaluate([np.ones((4, 5)) + 0.1 * rng.standard_normal((4, 5))])
        h = rng.standard_normal((4, 5))
        g = rng.standard_normal((4, 5))
        gap = (g * evaluation.jvp([h])[0]).sum() - (h * evaluation.vjp([g])[0]).sum()
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps([used, evaluation.info.residual.max(), gap]))
        """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, timeout=90)
    assert done.returncode == 0, done.stderr[-2000:]
    megabytes, residual, gap = json.loads(done.stdout)
    assert megabytes < 250 and residual < 1e-11 and abs(gap) < 1e-9


@pytest.mark.parametrize("form", ["inequality", "variable"])
def test_beyond_the_limit_solutions_stand_and_derivatives_are_refused(form, monkeypatch):
    C = cp.Parameter((6, 6), symmetric=True, name="C")
    rng = np.random.default_rng(0)
    B = rng.standard_normal((6, 6))
    X = cp.Variable((6, 6), PSD=True, name="X") if form == "variable" else cp.Variable((6, 6), symmetric=True, name="X")
    constraints = [B @ X @ B.T >> -1] if form == "inequality" else [cp.sum(cp.multiply(B, X)) == 1, cp.trace(X) <= 3]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C) + cp.trace(C @ X)), constraints)
    theta = [np.diag(np.linspace(-2, 2, 6))]
    expected = lc.compile(problem).evaluate(theta)
    monkeypatch.setattr(rotation, "LARGEST", 30)
    compiled = lc.compile(problem)
    assert "too large" in compiled.report()
    evaluation = compiled.evaluate(theta)
    assert evaluation.info.ok and evaluation.info.residual <= 1e-8 and evaluation.info.refinements == 0
    np.testing.assert_allclose(evaluation.outputs[0], expected.outputs[0], atol=1e-5)
    for derivative in (lambda: evaluation.vjp([np.eye(6)]), lambda: evaluation.jvp(theta), lambda: evaluation.hvp([np.eye(6)], theta)):
        with pytest.raises(DerivativeError, match="too large"):
            derivative()
