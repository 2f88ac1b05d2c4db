"""Objectives in the CVXPY DSL as residual blocks, whose sum is the objective; and what is no least-squares problem."""

import cvxpy as cp
import numpy as np
import pytest

from layercompiler import arrays
from layercompiler.errors import IntegerVariableError, NotLeastSquaresError, ParameterMismatchError, UnsupportedExpressionError
from layercompiler.problems.nonlinear.compile import compile_nonlinear

HOST = arrays.get("numpy")
sin, cos = cp.nlp.sin, cp.nlp.cos
A = np.abs(np.random.default_rng(5).standard_normal((4, 6)))


class _Names:
    def __init__(self):
        self.x, self.X = cp.Variable(6, name="x"), cp.Variable((3, 4), name="X")
        self.p, self.w = cp.Parameter(6, name="p"), cp.Parameter(6, nonneg=True, name="w")
        self.q, self.P = cp.Parameter(nonneg=True, name="q"), cp.Parameter((6, 6), PSD=True, name="P")
        self.r, self.R = sin(self.x) - self.p, cos(self.X) - 0.3


OBJECTIVES = {
    "sum of squares": lambda n: cp.sum_squares(n.r),
    "weights of entries": lambda n: cp.sum(cp.multiply(n.w, cp.square(n.r))),
    "weights from the left": lambda n: n.w @ cp.square(n.r),
    "weights from the right": lambda n: cp.square(n.r) @ n.w,
    "a nonnegative matrix": lambda n: cp.sum(cp.multiply(np.array([1.0, 0.0, 2.0, 3.0]), A @ cp.square(n.r))),
    "a matrix from the right": lambda n: cp.sum(cp.square(n.R) @ np.arange(1.0, 5.0)),
    "sums along an axis": lambda n: cp.sum(cp.multiply(np.arange(3.0), cp.sum(cp.square(n.R), axis=1))),
    "quad_over_lin along an axis": lambda n: cp.sum(cp.multiply(np.arange(1.0, 5.0), cp.quad_over_lin(n.R, 1 + n.q, axis=0))),
    "quad_over_lin of a variable": lambda n: cp.quad_over_lin(n.r, 1 + cp.square(n.x[0])),
    "a norm squared": lambda n: cp.square(cp.norm(n.r)),
    "norms of rows squared": lambda n: cp.sum(cp.square(cp.norm(n.R, axis=1))),
    "mean and variance": lambda n: cp.mean(cp.square(n.r)) + cp.var(n.x),
    "even powers": lambda n: cp.sum(n.r**4),
    "quad_form": lambda n: cp.quad_form(n.r, np.diag(np.arange(6.0)) + 0.1),
    "quad_form of a parameter": lambda n: n.q * cp.quad_form(n.r, n.P),
    "x' P x": lambda n: n.r @ n.P @ n.r,
    "r' r": lambda n: n.r @ n.r + cp.sum(cp.multiply(n.r, n.r)),
    "minus minus": lambda n: 3 - (n.q - cp.sum_squares(n.r)),
    "stacked squares": lambda n: cp.sum(cp.multiply(np.arange(12.0), cp.hstack([cp.square(n.r), cp.square(sin(n.x))]))),
    "moved squares": lambda n: cp.trace(cp.diag(cp.square(n.r))) + cp.sum(cp.cumsum(cp.square(n.x))) + cp.square(n.R)[1, 2] * n.q,
    "a loop": lambda n: sum(n.w[i] * cp.square(n.x[i + 1] - sin(n.x[i])) for i in range(5)),
    "huber": lambda n: n.q * cp.sum(cp.huber(n.r, 0.2)),
    "huber with a radius": lambda n: n.w @ cp.huber(n.r, n.q),
    "cauchy": lambda n: cp.sum(cp.log1p(cp.square(n.r) / 0.3)),
    "cauchy by log": lambda n: n.q * cp.sum(cp.log(2 + 3 * cp.square(n.r))),
    "pseudo-huber": lambda n: n.w @ cp.sqrt(0.5 + cp.square(n.r)),
    "welsch": lambda n: cp.sum(cp.multiply(n.w, 1 - cp.exp(-cp.square(n.r) / 0.4))),
    "geman-mcclure": lambda n: cp.sum(cp.square(n.r) / (0.3 + cp.square(n.r))),
    "several losses": lambda n: cp.sum_squares(n.r) + cp.sum(cp.huber(n.x, n.q)) + cp.sum(cp.log1p(cp.square(n.R))),
}


def _draw(leaves, rng):
    for leaf in leaves:
        leaf.value = (lambda a: a @ a.T + np.eye(6))(rng.standard_normal((6, 6))) if leaf.name() == "P" else rng.uniform(0.1, 1, leaf.shape)


def objective_of(program, variables, parameters):
    """Twice the inner objective, from its blocks."""
    inner = program.before.evaluate(HOST, [np.asarray(p.value) for p in parameters])
    total = 0.0
    for block in program.inner.blocks:
        r = block.residual(HOST, *(np.asarray(variables[k].value) for k in block.on), *(inner[a.parameter] for a in block.arguments))
        assert r.shape == (block.dim,)
        s = r * r
        if block.robust is not None:
            c = inner[block.radius.parameter] if block.radius.parameter is not None else block.radius.value
            s = block.robust.rho(HOST, s, c * c)
        if block.mass is not None:
            s = s * (inner[block.mass.parameter] if block.mass.parameter is not None else block.mass.value)
        total += float(np.sum(s))
    return total


@pytest.mark.parametrize("sense", [cp.Minimize, cp.Maximize])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_blocks_add_up_to_the_objective_but_for_a_constant(name, sense):
    n = _Names()
    written = OBJECTIVES[name](n)
    problem = cp.Problem(sense(written if sense is cp.Minimize else -written))
    program = compile_nonlinear(problem, outputs=[problem.objective, *problem.variables()])
    variables, parameters, rng = problem.variables(), problem.parameters(), np.random.default_rng(1)
    _draw(parameters, rng)
    offsets = []
    for _ in range(3):
        _draw(variables, rng)
        offsets.append(objective_of(program, variables, parameters) - float(written.value))
        values = program.after.evaluate(HOST, [np.asarray(leaf.value) for leaf in [*variables, *parameters]])
        assert float(values[0]) == pytest.approx(float(problem.objective.value), abs=1e-12)
        for value, variable in zip(values[1:-1], variables, strict=True):
            np.testing.assert_array_equal(value, variable.value)
    np.testing.assert_allclose(offsets, offsets[0], atol=1e-11)


def _rejected(objective, constraints=()):
    return compile_nonlinear(cp.Problem(cp.Minimize(objective), list(constraints)))


@pytest.mark.parametrize(
    ("term", "named"),
    [
        (lambda n: cp.sum_squares(n.r) + cp.sum(sin(n.x)), "sin(x)"),
        (lambda n: -cp.sum_squares(n.r), "sum_squares(sin(x) - p)"),
        (lambda n: cp.sum_squares(n.r) + n.p @ n.x, "x"),
        (lambda n: cp.norm(n.r), "norm(sin(x) - p)"),
        (lambda n: cp.sum(cp.multiply(n.p, cp.square(n.r))), "(sin(x) - p) ** 2"),
        (lambda n: cp.sum(cp.exp(cp.square(n.r))), "exp((sin(x) - p) ** 2)"),
        (lambda n: cp.max(cp.square(n.r)), "max((sin(x) - p) ** 2)"),
        (lambda n: cp.quad_form(n.r, np.diag([1.0, 1, 1, 1, 1, -1]), assume_PSD=True), "quad_form(sin(x) - p"),
    ],
)
def test_the_term_that_is_no_square_is_named(term, named):
    with pytest.raises(NotLeastSquaresError) as caught:
        _rejected(term(_Names()))
    assert named in caught.value.where


@pytest.mark.parametrize("atom", [cp.ceil, cp.sign])
def test_an_atom_without_a_smooth_form_is_named(atom):
    with pytest.raises(UnsupportedExpressionError) as caught:
        _rejected(cp.sum_squares(3 * atom(_Names().x) - 1))
    assert f"{atom.__name__}(x)" == caught.value.where


@pytest.mark.parametrize(
    ("constraint", "named"),
    [
        (lambda n: n.x[0] + n.x[1] == 1, "x[0] + x[1] == 1"),
        (lambda n: n.q * n.x[:2] <= 1, "q * x[0:2] <= 1"),
        (lambda n: sin(n.x) <= 1, "sin(x) <= 1"),
        (lambda n: cp.SOC(n.q, n.x), "SOC"),
    ],
)
def test_a_constraint_that_is_no_bound_is_named(constraint, named):
    n = _Names()
    with pytest.raises(NotLeastSquaresError) as caught:
        _rejected(cp.sum_squares(n.r), [constraint(n)])
    assert named in caught.value.where


def test_variables_that_least_squares_does_not_know():
    with pytest.raises(IntegerVariableError, match="'k'"):
        _rejected(cp.sum_squares(sin(cp.Variable(2, integer=True, name="k"))))
    with pytest.raises(UnsupportedExpressionError, match="'S' is declared PSD"):
        _rejected(cp.sum_squares(cp.exp(cp.Variable((2, 2), PSD=True, name="S"))))
    x = cp.Variable(2, name="x")
    with pytest.raises(NotLeastSquaresError, match="leave nothing"):
        _rejected(cp.sum_squares(sin(x)), [x >= 2, x <= 1])
    with pytest.raises(NotLeastSquaresError, match="two equalities"):
        _rejected(cp.sum_squares(sin(x)), [x[0] == 2, x == 1])
    with pytest.raises(ParameterMismatchError, match="'y' is not in the problem"):
        compile_nonlinear(cp.Problem(cp.Minimize(cp.sum_squares(sin(x)))), outputs=[cp.Variable(2, name="y")])


def _restored(problem, unknowns, outputs=None):
    program = compile_nonlinear(problem, outputs=outputs)
    parameters = [np.asarray(p.value) for p in problem.parameters()]
    return program, program.after.evaluate(HOST, [*unknowns, *parameters])


def test_constant_bounds_are_kept_and_starts_are_moved_inside():
    x = cp.Variable((2, 3), name="x", bounds=[-1, 2])
    x.value = np.array([[2.0, 0, 0], [0, 0, -1]])
    program = compile_nonlinear(cp.Problem(cp.Minimize(cp.sum_squares(sin(x))), [x[0] >= 0.5, -2 * x[1, 0] <= 1]))
    (spec,) = program.inner.variables
    np.testing.assert_allclose(spec.lower, [[0.5, 0.5, 0.5], [-0.5, -1, -1]])
    np.testing.assert_allclose(spec.upper, np.full((2, 3), 2.0))
    np.testing.assert_allclose(spec.init, [[2, 0.5, 0.5], [0, 0, -1]])


def test_fixed_entries_are_their_values_and_leave_the_unknown():
    x, start = cp.Variable((3, 2), name="x"), cp.Parameter(2, name="start")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(sin(x))), [x[0] == start, 2 * x[2, 1] == 1])
    start.value = np.array([3.0, 4.0])
    program, (value, _) = _restored(problem, [np.array([7.0, 8.0, 9.0])])
    assert program.inner.variables[0].shape == (3,)
    np.testing.assert_allclose(value, [[3, 4], [7, 8], [9, 0.5]])


def test_bounds_of_parameters_shift_and_scale_the_unknown():
    x, low, high = cp.Variable(4, name="x"), cp.Parameter(4, name="low"), cp.Parameter(2, name="high")
    low.value, high.value = np.array([1.0, 2, 3, 4]), np.array([5.0, 6])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(sin(x)) + cp.sum_squares(low) * 0), [x[:3] >= low[:3], x[2:] <= high])
    program = compile_nonlinear(problem)
    (spec,) = program.inner.variables
    np.testing.assert_allclose(spec.lower, [0, 0, 0, -np.inf])
    np.testing.assert_allclose(spec.upper, [np.inf, np.inf, 1, 0])
    np.testing.assert_allclose(spec.init, [0, 0, 0.5, 0])
    _, (value, _) = _restored(problem, [np.array([0.5, 1.0, 0.5, -1.0])])
    np.testing.assert_allclose(value, [1.5, 3.0, 4.0, 5.0])


def test_attributes_leave_only_the_free_entries():
    S, D = cp.Variable((2, 2), symmetric=True, name="S"), cp.Variable((3, 3), diag=True, name="D")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.exp(S)) + cp.sum_squares(cp.exp(D))))
    program, values = _restored(problem, [np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])], outputs=[S, D])
    assert [v.shape for v in program.inner.variables] == [(3,), (3,)]
    np.testing.assert_array_equal(values[0], [[1, 2], [2, 3]])
    np.testing.assert_array_equal(values[1], np.diag([4.0, 5, 6]))


def test_what_depends_on_parameters_only_is_computed_once():
    n = _Names()
    heavy = cp.exp(n.P @ n.p)
    program = compile_nonlinear(cp.Problem(cp.Minimize(cp.sum_squares(sin(n.x) - heavy))))
    (block,) = program.inner.blocks
    assert [node.operation for node in block.residual.graph.nodes].count("exp") == 0
    assert [node.operation for node in program.before.nodes].count("exp") == 1


def test_parameters_that_are_not_listed_are_constants():
    n = _Names()
    n.p.value = np.arange(6.0)
    program = compile_nonlinear(cp.Problem(cp.Minimize(n.w @ cp.square(n.r))), parameters=[n.w])
    assert [p.name for p in program.parameters] == ["w"]
    assert program.parameters[0].attributes == ("nonneg",)
