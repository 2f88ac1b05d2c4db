"""The contract with CVXPY's internals: the versions that were checked, what is used of them, and that the data are CVXPY's own."""

import warnings

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
from cvxpy.reductions.solvers.conic_solvers.clarabel_conif import CLARABEL
from hypothesis import given, settings
from hypothesis import strategies as st

import layercompiler as lc
from layercompiler.cones import PSD, Exponential, Nonnegative, Power, SecondOrder, Zero
from layercompiler.problems import canonical
from layercompiler.problems.canonical import CHECKED_CVXPY, canonicalize
from tests.plan import families, optimality

every_family = pytest.mark.parametrize("name", families.FAMILIES)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_this_version_was_checked():
    """A new CVXPY: run this file, and the rest of the tests, then add the version to `CHECKED_CVXPY`."""
    assert cp.__version__ in CHECKED_CVXPY


def test_the_internals_that_are_used_exist():
    """What `canonical.py` reaches into, by name; each has broken between CVXPY versions before."""
    x, p = cp.Variable((2, 2), symmetric=True), cp.Parameter((2, 2), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >> 0])
    made = canonicalize(problem, gp=False)
    tensors, chain = made.tensors, made.chain
    for name in ("x", "q", "P", "reduced_A", "reduced_P", "constr_size", "cone_dims", "constr_map", "variables"):
        assert hasattr(tensors, name), name
    for name in ("param_id_to_col", "param_id_to_size", "var_id_to_col"):
        assert isinstance(getattr(tensors, name), dict), name
    for name in ("zero", "nonneg", "soc", "psd", "exp", "p3d"):
        assert hasattr(tensors.cone_dims, name), name
    assert hasattr(x, "_has_dim_reducing_attr")
    assert callable(chain.compose_param_id_map) and callable(chain.compose_var_id_map)
    assert len(chain.reductions) == len(made.inverse_data)
    kinds = {"Zero", "NonNeg", "SOC", "SvecPSD", "ExpCone", "PowCone3D"}
    assert {k.__name__ for k in canonical._Standard.SUPPORTED_CONSTRAINTS} == kinds
    assert {k.__name__ for k in CLARABEL.SUPPORTED_CONSTRAINTS} - kinds == {"PowConeND"}


def set_values(case, seed=None):
    """The case's values, or those moved along a random direction."""
    theta = case.theta if seed is None else [t + 0.1 * d for t, d in zip(case.theta, case.direction(seed), strict=True)]
    for p, t in zip(case.parameters, theta, strict=True):
        p.value = t
    return theta


@every_family
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_data_are_those_of_cvxpy(name, seed):
    """P, q, A, b and the cones, for three parameter values, against CVXPY's data of the same problem without parameters folded."""
    case = families.case(name)
    theta = set_values(case, seed)
    program = families.compiled(name).program
    bound = program.bind([np.log(theta[c.parameter]).reshape(1, -1) if c.log else flat(theta[c.parameter]) for c in program.channels], 1)
    P, q, A, b, dims = optimality.data(extended(name), gp=name == "geometric")
    s = program.structure
    ours = np.zeros((s.n, s.n))
    ours[s.P_rows, s.P_cols] = ours[s.P_cols, s.P_rows] = bound.P[0]
    np.testing.assert_allclose(ours, P, rtol=0, atol=1e-12)
    np.testing.assert_allclose(bound.q[0], q, rtol=0, atol=1e-12)
    np.testing.assert_allclose(sp.csr_array((bound.A[0], (s.A_rows, s.A_cols)), shape=(s.m, s.n)).toarray(), A, rtol=0, atol=1e-12)
    np.testing.assert_allclose(bound.b[0], b, rtol=0, atol=1e-12)
    kinds = {Zero: dims.zero, Nonnegative: dims.nonneg, Exponential: dims.exp, Power: len(dims.p3d)}
    for kind, count in kinds.items():
        assert sum(k for cone, k in s.cones.blocks if isinstance(cone, kind)) == count
    assert [cone.dim for cone, k in s.cones.blocks for _ in range(k) if isinstance(cone, SecondOrder)] == list(dims.soc)
    assert [cone.order for cone, k in s.cones.blocks for _ in range(k) if isinstance(cone, PSD)] == list(dims.psd)
    assert np.all(s.P_rows <= s.P_cols) and np.all(np.diff(s.A_rows * s.n + s.A_cols) > 0)


def flat(value):
    return np.asarray(value, dtype=float).reshape(1, -1)


def extended(name):
    """The problem with variables for the expressions among the outputs, as they are compiled."""
    case = families.case(name)
    leaves = [o for o in case.outputs if not isinstance(o, (cp.Variable, cp.Minimize, cp.Maximize))]
    extra = [cp.Variable(o.shape, pos=name == "geometric") == o for o in leaves]
    return cp.Problem(case.problem.objective, [*case.problem.constraints, *extra])


@every_family
def test_the_problem_of_the_user_is_left_as_it_was(name):
    """No value of a parameter, a variable or a dual variable changes; the problem can be solved afterwards."""
    case = families.FAMILIES[name](np.random.default_rng(7))
    set_values(case)
    case.problem.solve(solver="CLARABEL", gp=name == "geometric")
    leaves = [*case.problem.variables(), *case.problem.parameters(), *(v for c in case.problem.constraints for v in c.dual_variables)]
    before = [dense(v) for v in leaves]
    value, constraints = case.problem.value, list(case.problem.constraints)
    lc.compile(case.problem, parameters=case.parameters, variables=case.outputs)
    assert case.problem.value == value and case.problem.constraints == constraints
    for v, held in zip(leaves, before, strict=True):
        np.testing.assert_array_equal(dense(v), held)


def dense(leaf):
    value = leaf.value
    return value.toarray() if hasattr(value, "toarray") else np.array(value)


def test_a_cone_that_is_unknown_is_refused():
    class Fake:
        cone_dims = None
        constr_map = {cp.constraints.zero.Zero: [], type("NewCone", (), {}): [object()]}  # noqa: RUF012

    with pytest.raises(NotImplementedError, match="NewCone"):
        canonical._cones(Fake())


def test_cones_of_equal_size_are_grouped_in_runs():
    x = cp.Variable(6)
    problem = cp.Problem(cp.Minimize(cp.sum(x)), [cp.norm2(x[:2]) <= 1, cp.norm2(x[2:4]) <= 1, cp.norm2(x[3:]) <= 1, cp.norm2(x[4:]) <= 1])
    blocks = canonicalize(problem, gp=False).cones.blocks
    assert [(c.dim, k) for c, k in blocks if isinstance(c, SecondOrder)] == [(3, 2), (4, 1), (3, 1)]


@given(st.integers(0, 12), st.integers(1, 9), st.sampled_from(["gather", "sums", "zero"]), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_linear_maps_are_found_by_probing(rows, size, kind, seed):
    """The dual maps: plain gathers with factors by two probes, everything else column by column."""
    rng = np.random.default_rng(seed)
    M = np.zeros((rows, size))
    if kind != "zero" and rows:
        M[np.arange(rows), rng.integers(0, size, rows)] = rng.choice([1.0, -1.0, np.sqrt(0.5), 2.0], rows)
    if kind == "sums" and rows:
        M += rng.choice([0.0, 1.0], M.shape)
    np.testing.assert_allclose(canonical._probe(lambda y: M @ y, size).toarray(), M, atol=1e-12)


DUALS = {
    "equality": lambda x, p: x == p,
    "inequality": lambda x, p: x <= p,
    "inequality, turned": lambda x, p: p >= x,
    "scalar": lambda x, p: cp.sum(x) <= p[0, 0],
    "matrix": lambda x, p: 2 * x.T >= p,
    "norm": lambda x, p: cp.norm(x, "fro") <= 1 + cp.sum(p),
    "second order": lambda x, p: cp.SOC(1 + cp.sum(p), cp.vec(x, order="F")),
    "second order, by columns": lambda x, p: cp.SOC(np.ones(2) + p[0], x, axis=0),
    "second order, by rows": lambda x, p: cp.SOC(np.ones(2) + p[0], x, axis=1),
    "semidefinite": lambda x, p: x + x.T << p + p.T + 1.5 * np.eye(2),
    "exponential": lambda x, p: cp.ExpCone(x, np.ones((2, 2)), p + 2),
    "power": lambda x, p: cp.PowCone3D(x[0] + 3, x[1] + 3, p[0] + 1, np.array([0.3, 0.6])),
    "power, N-d": lambda x, p: cp.PowConeND(cp.vstack([x[0] + 3, x[1] + 3]), p[0] + 1, np.full((2, 2), 0.5)),
}


@pytest.mark.parametrize("name", DUALS)
def test_duals_of_every_constraint_are_those_of_cvxpy(name):
    """Sign, order, shape and scale of every dual variable."""
    x, p = cp.Variable((2, 2), name="x"), cp.Parameter((2, 2), name="p")
    constraint = DUALS[name](x, p)
    # Pulls the point out of every one of these sets, unsymmetrically.
    aim = np.array([[2.0, 3.5], [4.0, 2.5]]) * (-4 if name.startswith(("matrix", "power")) else 1)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - aim)), [constraint])
    p.value = np.array([[0.1, -0.2], [0.3, 0.4]])
    compiled = lc.compile(problem, variables=[x, *constraint.dual_variables])
    ours = compiled.evaluate([p.value]).outputs
    tight = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
    problem.solve(solver="CLARABEL", **tight)
    np.testing.assert_allclose(ours[0], x.value, atol=1e-6)
    assert np.abs(ours[1]).max() > 1e-3, "inactive: the test would show nothing"
    for mine, v in zip(ours[1:], constraint.dual_variables, strict=True):
        assert mine.shape == v.shape
        np.testing.assert_allclose(mine, np.reshape(v.value, v.shape), atol=1e-5)
