"""Every violation is found, named and mended: the advised rewrite keeps the rules and has the same optimal value."""

import copy
import pickle
from dataclasses import dataclass, field

import cvxpy as cp
import numpy as np
import pytest
import scipy.linalg
from cvxpy.transforms.partial_optimize import partial_optimize

from layercompiler import errors
from layercompiler.problems.discipline import check, explain
from layercompiler.problems.quadratic import settle


def leaves():
    """A fresh set of variables, parameters with values, and the functions that the cases are written in."""
    draw = np.random.default_rng(1)
    root = draw.standard_normal((3, 3))
    space = {name: getattr(cp, name) for name in dir(cp) if not name.startswith("_")}
    space |= {"cp": cp, "np": np, "range": range, "scipy": scipy, "builtins_sum": sum, "Min": _minimize, "Max": _maximize}
    for name, shape, options in [("x", 3, {}), ("z", (), {}), ("u", (), {}), ("X", (3, 3), {"symmetric": True}), ("Y", (2, 3), {})]:
        space[name] = cp.Variable(shape, name=name, **options)
    for name in "abc":
        space[f"v{name}"] = cp.Variable(name=f"v{name}", pos=True)
    for name, shape, options in [
        ("p", 3, {}),
        ("q", 3, {}),
        ("s", (), {}),
        ("n", (), {"nonneg": True}),
        ("m", (), {"nonneg": True}),
        ("g", (), {"pos": True}),
        ("h", (), {"pos": True}),
        ("A", (3, 3), {}),
        ("B", (3, 3), {}),
        ("D", (2, 2), {}),
        ("S", (3, 3), {"symmetric": True}),
        ("P", (3, 3), {"PSD": True}),
        ("Q", (3, 3), {"NSD": True}),
    ]:
        value = {"P": root @ root.T + np.eye(3), "S": root @ root.T + np.eye(3), "Q": -root @ root.T - np.eye(3)}.get(name)
        space[name] = cp.Parameter(shape, name=name, **options)
        space[name].value = draw.uniform(0.5, 1.5, space[name].shape) if value is None else value
    space["ball"] = cp.norm(space["x"]) <= 1
    space["balls"] = [
        space["ball"],
        cp.norm(space["X"], "fro") <= 1,
        cp.norm(space["Y"], "fro") <= 1,
        cp.abs(cp.hstack([space["z"], space["u"]])) <= 2,
    ]
    return space


def _minimize(expression, *constraints):
    return cp.Problem(cp.Minimize(expression), list(constraints))


def _maximize(expression, *constraints):
    return cp.Problem(cp.Maximize(expression), list(constraints))


@dataclass
class Case:
    """A problem, what is wrong with it, and the rewrite.

    `declare` and `write` are quoted from the advice; `{write}` in `mended` is replaced by the latter, `values` says what
    the caller passes for the new parameters.
    """

    problem: str
    blamed: str
    mended: str
    declare: tuple = ()
    write: str = ""
    values: dict = field(default_factory=dict)
    kind: str = "DPP"
    gp: bool | None = None
    comparable: bool = True  # False where cvxpy itself cannot solve the problem that breaks the rules


R3, W3, RS, WS = "r = cp.Parameter((3,))", "w = cp.Parameter((3,))", "r = cp.Parameter(nonneg=True)", "w = cp.Parameter(nonneg=True)"
RM, LM, YV = "R = cp.Parameter((3, 3))", "L = cp.Parameter((3, 3))", "y = cp.Variable((3,))"
FACTOR = {"L": "np.linalg.cholesky(P.value).T"}

PARAMETRIC = [
    # one new parameter for an expression of parameters
    Case(
        "Min(sum(multiply(multiply(p, q), x)), ball)",
        "multiply(p, q)",
        "Min(sum(multiply(r, x)), ball)",
        (R3,),
        "r",
        {"r": "p.value * q.value"},
    ),
    Case(
        "Min(exp(p) @ x, ball)",
        "exp(p) @ x",
        "Min({write} @ x, ball)",
        ("r = cp.Parameter((3,), nonneg=True)",),
        "r",
        {"r": "np.exp(p.value)"},
    ),
    Case("Min(sum(A @ B @ x), ball)", "A @ B", "Min(sum({write} @ x), ball)", (RM,), "R", {"R": "A.value @ B.value"}),
    Case(
        "Min(norm(p) * norm(x) - q @ x, ball)",
        "norm(p) * norm(x)",
        "Min({write} * norm(x) - q @ x, ball)",
        (RS,),
        "r",
        {"r": "np.linalg.norm(p.value)"},
    ),
    Case("Min(sum(x), x >= log(p))", "log(p)", "Min(sum(x), x >= {write})", (R3,), "r", {"r": "np.log(p.value)"}),
    Case(
        "Min(max(p) * sum(x), ball)", "max(p) * sum(x)", "Min({write} * sum(x), ball)", ("r = cp.Parameter()",), "r", {"r": "p.value.max()"}
    ),
    Case(
        "Min(abs(s) * norm(x) + sum(x), ball)",
        "abs(s) * norm(x)",
        "Min({write} * norm(x) + sum(x), ball)",
        (RS,),
        "r",
        {"r": "np.abs(s.value)"},
    ),
    Case("Min(sum(x), x >= p * s + q)", "p * s + q", "Min(sum(x), x >= {write})", (R3,), "r", {"r": "p.value * s.value + q.value"}),
    Case(
        "Min(norm(x), x == abs(p))",
        "abs(p)",
        "Min(norm(x), x == {write})",
        ("r = cp.Parameter((3,), nonneg=True)",),
        "r",
        {"r": "np.abs(p.value)"},
    ),
    Case(
        "Min(square(norm(p) - sum(x)), ball)",
        "norm(p)",
        "Min(square({write} - sum(x)), ball)",
        (RS,),
        "r",
        {"r": "np.linalg.norm(p.value)"},
    ),
    Case("Min(trace(X), X >> A @ A.T)", "A @ A.T", "Min(trace(X), X >> {write})", (RM,), "R", {"R": "A.value @ A.value.T"}),
    Case(
        "Min(h ** z, z >= p[0])", "z * log(h)", "Min(exp({write} * z), z >= p[0])", ("r = cp.Parameter()",), "r", {"r": "np.log(h.value)"}
    ),
    Case(
        "Min(sum(Variable(3, name='b', bounds=[exp(p), None])))",
        "exp(p)",
        "Min(sum(Variable(3, bounds=[{write}, None])))",
        ("r = cp.Parameter((3,), nonneg=True)",),
        "r",
        {"r": "np.exp(p.value)"},
        comparable=False,
    ),
    Case(
        "Min(dotsort(x, multiply(p, q)), x >= 1)",
        "multiply(p, q)",
        "Min(dotsort(x, {write}), x >= 1)",
        (R3,),
        "r",
        {"r": "p.value * q.value"},
    ),
    Case(
        "Min(matrix_frac(x - 1, A @ A.T + np.eye(3)) + sum(x))",
        "A @ A.T + <constant 3 x 3>",
        "Min(matrix_frac(x - 1, {write}) + sum(x))",
        (RM,),
        "R",
        {"R": "A.value @ A.value.T + np.eye(3)"},
    ),
    Case(
        "Min(z, SOC(z, multiply(exp(p), x) - 1), ball)",
        "multiply(exp(p), x)",
        "Min(z, SOC(z, multiply({write}, x) - 1), ball)",
        ("r = cp.Parameter((3,), nonneg=True)",),
        "r",
        {"r": "np.exp(p.value)"},
    ),
    # a product of parameters, one of them deeper
    Case(
        "Min(sum(multiply(p, multiply(q, x))), ball)",
        "multiply(p, multiply(q, x))",
        "Min(sum({write}), ball)",
        (R3,),
        "multiply(r, x)",
        {"r": "p.value * q.value"},
    ),
    Case("Min(sum(A @ (B @ x)), ball)", "A @ (B @ x)", "Min(sum({write}), ball)", (RM,), "R @ x", {"R": "A.value @ B.value"}),
    Case("Min(sum(x @ A @ B), ball)", "x @ A @ B", "Min(sum({write}), ball)", (RM,), "x @ R", {"R": "A.value @ B.value"}),
    Case(
        "Min(n * (m * norm(x - 1)) + sum(x), ball)",
        "n * (m * norm(x - 1))",
        "Min({write} + sum(x), ball)",
        (RS,),
        "r * norm(x - 1)",
        {"r": "n.value * m.value"},
    ),
    Case(
        "Max(n * log_det(X + np.eye(3)) * m - trace(X))",
        "n * log_det(X + <constant 3 x 3>) * m",
        "Max(r * log_det(X + np.eye(3)) - trace(X))",
        (RS,),
        "r * log_det(X + <constant 3 x 3>)",
        {"r": "n.value * m.value"},
    ),
    Case("Min(exp(z * s * n) - z)", "z * s * n", "Min(exp({write}) - z)", ("r = cp.Parameter()",), "r * z", {"r": "n.value * s.value"}),
    Case(
        "Min(n * quad_form(x, P) + p @ x)",
        "n * quad_form(x, P)",
        "Min({write} + p @ x)",
        ("R = cp.Parameter((3, 3), PSD=True)",),
        "quad_form(x, R)",
        {"R": "n.value * P.value"},
    ),
    Case(
        "Min(sum(multiply(p, x) / q), ball)",
        "multiply(p, x) / q",
        "Min(sum({write}), ball)",
        (R3,),
        "multiply(r, x)",
        {"r": "p.value / q.value"},
    ),
    Case(
        "Min(n * norm(x - 1) / m + sum(x), ball)",
        "n * norm(x - 1) / m",
        "Min({write} + sum(x), ball)",
        (RS,),
        "r * norm(x - 1)",
        {"r": "n.value / m.value"},
    ),
    # a variable takes the parameters over
    Case("Min(sum(A @ (x + p)), ball)", "A @ (x + p)", "Min(sum({write}), ball, y == x + p)", (YV, "y == x + p"), "A @ y"),
    Case(
        "Min(sum(multiply(p, A @ x)), ball)",
        "multiply(p, A @ x)",
        "Min(sum({write}), ball, y == A @ x)",
        (YV, "y == A @ x"),
        "multiply(p, y)",
    ),
    Case(
        "Min(trace(A @ X @ B), *balls)",
        "multiply(A @ X, B.T)",
        "Min(sum({write}), *balls, T == A @ X)",
        ("T = cp.Variable((3, 3))", "T == A @ X"),
        "multiply(T, B.T)",
    ),
    Case("Min(quad_form(p, X), *balls)", "p @ X @ p", "Min({write}, *balls, y == p @ X)", (YV, "y == p @ X"), "y @ p"),
    Case(
        "Min(n * norm(multiply(p, x) - 1) + sum(x), ball)",
        "n * norm(multiply(p, x) - 1)",
        "Min({write} + sum(x), ball, y == multiply(p, x) - 1)",
        (YV, "y == multiply(p, x) - 1"),
        "n * norm(y)",
    ),
    Case(
        "Min(n * sum_squares(x - p) + q @ x)",
        "n * sum_squares(x - p)",
        "Min({write} + q @ x, y == x - p)",
        (YV, "y == x - p"),
        "n * sum_squares(y)",
    ),
    Case(
        "Min(n * (norm(x - p) + norm(x - q)))",
        "n * (norm(x - p) + norm(x - q))",
        "Min({write}, norm(x - p) + norm(x - q) <= y)",
        ("y = cp.Variable()", "norm(x - p) + norm(x - q) <= y"),
        "n * y",
    ),
    Case(
        "Max(n * (log(x[0] + s) - square(x[0])))",
        "n * (log(x[0] + s) - x[0] ** 2)",
        "Max({write}, log(x[0] + s) - x[0] ** 2 >= y)",
        ("y = cp.Variable()", "log(x[0] + s) - x[0] ** 2 >= y"),
        "n * y",
    ),
    Case(
        "Min(exp(p)[0] * norm(x - p) + sum(x), ball)",
        "exp(p)[0] * norm(x - p)",
        "Min({write} + sum(x), ball, y == x - p)",
        (YV, "y == x - p", "r = cp.Parameter(nonneg=True)"),
        "r * norm(y)",
        {"r": "np.exp(p.value)[0]"},
    ),
    Case(
        "Min(quad_over_lin(x - 1, z + n) + square(z))",
        "quad_over_lin(x - 1, z + n)",
        "Min({write} + square(z), y == z + n)",
        ("y = cp.Variable()", "y == z + n"),
        "quad_over_lin(x - 1, y)",
    ),
    # division by a parameter
    Case("Min(sum(x / p), ball)", "x / p", "Min(sum({write}), ball)", (W3,), "multiply(w, x)", {"w": "1 / p.value"}),
    Case(
        "Min(sum_squares(x) / n + p @ x)", "sum_squares(x) / n", "Min({write} + p @ x)", (WS,), "w * sum_squares(x)", {"w": "1 / n.value"}
    ),
    Case(
        "Min(quad_over_lin(x, n) + p @ x)", "quad_over_lin(x, n)", "Min({write} + p @ x)", (WS,), "w * sum_squares(x)", {"w": "1 / n.value"}
    ),
    Case(
        "Min(quad_over_lin(x - p, n) + q @ x)",
        "quad_over_lin(x - p, n)",
        "Min({write} + q @ x, y == x - p)",
        (WS, YV, "y == x - p"),
        "w * sum_squares(y)",
        {"w": "1 / n.value"},
    ),
    Case(
        "Min(sum_squares(x - p) / n + q @ x)",
        "sum_squares(x - p) / n",
        "Min({write} + q @ x, y == x - p)",
        (WS, YV, "y == x - p"),
        "w * sum_squares(y)",
        {"w": "1 / n.value"},
    ),
    # quadratic forms
    Case("Min(p @ x, quad_form(x, P) <= 1)", "quad_form(x, P)", "Min(p @ x, {write} <= 1)", (LM,), "sum_squares(L @ x)", FACTOR),
    Case(
        "Min(q @ x, quad_form(x - p, P) <= 1)",
        "quad_form(x - p, P)",
        "Min(q @ x, {write} <= 1, y == x - p)",
        (LM, YV, "y == x - p"),
        "sum_squares(L @ y)",
        FACTOR,
    ),
    Case(
        "Min(q @ x, quad_form(x, Q) >= -1)",
        "quad_form(x, Q)",
        "Min(q @ x, {write} >= -1)",
        (LM,),
        "-sum_squares(L @ x)",
        {"L": "np.linalg.cholesky(-Q.value).T"},
    ),
    Case("Min(exp(quad_form(x, P)) + p @ x)", "quad_form(x, P)", "Min(exp({write}) + p @ x)", (LM,), "sum_squares(L @ x)", FACTOR),
    Case(
        "Min(maximum(quad_form(x, P), 1) + p @ x)",
        "quad_form(x, P)",
        "Min(maximum({write}, 1) + p @ x)",
        (LM,),
        "sum_squares(L @ x)",
        FACTOR,
    ),
    Case(
        "Min(quad_form(x - p, P) + q @ x)", "quad_form(x - p, P)", "Min({write} + q @ x, y == x - p)", (YV, "y == x - p"), "quad_form(y, P)"
    ),
    Case(
        "Min(quad_form(x, P) + quad_form(x - p, np.eye(3)))",
        "quad_form(x - p, <constant 3 x 3>)",
        "Min(quad_form(x, P) + quad_form(y, np.eye(3)), y == x - p)",
        (YV, "y == x - p"),
        "quad_form(y, ",
    ),
    # structured products
    Case(
        "Min(sum(kron(D, Y)), *balls)",
        "kron(D, Y)",
        "Min(sum({write}), *balls)",
        (),
        "cp.bmat([[D[i, j] * Y for j in range(2)] for i in range(2)])",
    ),
    Case(
        "Min(sum(abs(kron(Y, D) - 1)), *balls)",
        "kron(Y, D)",
        "Min(sum(abs({write} - 1)), *balls)",
        (),
        "cp.bmat([[Y[i, j] * D for j in range(3)] for i in range(2)])",
    ),
    Case(
        "Min(norm(convolve(p, x) - 1), ball)",
        "convolve(p, x)",
        "Min(norm(builtins_sum({write}) - 1), ball)",
        (),
        "(p[i] * cp.hstack([np.zeros(i), x, np.zeros(2 - i)]) for i in range(3))",
    ),
    Case(
        "Min(norm(conv(p, reshape(x, (3, 1), order='F')) - 1), ball)",
        "conv(p, reshape(x, (3, 1)))",
        "Min(norm(T @ reshape(x, (3, 1), order='F') - 1), ball)",
        ("T = cp.Parameter((5, 3))",),
        "T @ reshape(x, (3, 1))",
        {"T": "scipy.linalg.toeplitz([*p.value, 0, 0], [p.value[0], 0, 0])"},
    ),
    Case(
        "Min(norm(convolve(exp(p), x - q) - 1), ball)",
        "convolve(exp(p), x - q)",
        "Min(norm(builtins_sum({write}) - 1), ball, y == x - q)",
        ("r = cp.Parameter((3,), nonneg=True)", YV),
        "(r[i] * cp.hstack([np.zeros(i), y, np.zeros(2 - i)]) for i in range(3))",
        {"r": "np.exp(p.value)"},
    ),
    # parameters that cvxpy does not see: it takes these for constants
    Case(
        "Min(sum(x), x >= p * huber(2, n))",
        "p * huber(2, n)",
        "Min(sum(x), x >= {write})",
        (R3,),
        "r",
        {"r": "p.value * np.minimum(n.value, 2) * (4 - np.minimum(n.value, 2))"},
        comparable=False,
    ),
    Case(
        "Max(z, z <= huber(2, n))",
        "huber(2, n)",
        "Max(z, z <= {write})",
        (RS,),
        "r",
        {"r": "np.minimum(n.value, 2) * (4 - np.minimum(n.value, 2))"},
        comparable=False,
    ),
]

CURVED = [
    # a sign or an attribute is missing
    Case(
        "Min(p[0] * norm(x - 1) + sum(x), ball)",
        "p[0] * norm(x - 1)",
        "Min(p[0] * norm(x - 1) + sum(x), ball)",
        ("p = cp.Parameter((3,), nonneg=True)",),
        values={"p": "VALUES['p']"},
    ),
    Case(
        "Min(s * norm(multiply(q, x) - 1), ball)",
        "s * norm(multiply(q, x) - 1)",
        "Min(s * {write}, ball, y == multiply(q, x) - 1)",
        ("s = cp.Parameter(nonneg=True)", YV),
        "norm(y)",
        {"s": "VALUES['s']"},
    ),
    Case(
        "Max(p @ log(x), x <= q)",
        "p @ log(x)",
        "Max(p @ log(x), x <= q)",
        ("p = cp.Parameter((3,), nonneg=True)",),
        values={"p": "VALUES['p']"},
    ),
    Case("Min(-s * log(z) + z)", "(-s) * log(z)", "Min(-s * log(z) + z)", ("s = cp.Parameter(nonneg=True)",), values={"s": "VALUES['s']"}),
    Case(
        "Min((p[0] + 2 - p[1]) * norm(x - 1), ball)",
        "(p[0] + 2 - p[1]) * norm(x - 1)",
        "Min({write} * norm(x - 1), ball)",
        (RS,),
        "r",
        {"r": "p.value[0] + 2 - p.value[1]"},
    ),
    Case(
        "Min(sum_squares(x) / s + p @ x)", "sum_squares(x) / s", "Min({write} + p @ x)", (WS,), "w * sum_squares(x)", {"w": "1 / s.value"}
    ),
    Case(
        "Min(quad_form(x, S) + p @ x)",
        "quad_form(x, S)",
        "Min(quad_form(x, S) + p @ x)",
        ("S = cp.Parameter((3, 3), PSD=True)",),
        values={"S": "VALUES['S']"},
    ),
    Case(
        "Max(p @ x - quad_form(x, S))",
        "quad_form(x, S)",
        "Max(p @ x - quad_form(x, S))",
        ("S = cp.Parameter((3, 3), PSD=True)",),
        values={"S": "VALUES['S']"},
    ),
    Case(
        "Min(quad_form(x, n * P) + p @ x)",
        "quad_form(x, n * P)",
        "Min(quad_form(x, {write}) + p @ x)",
        ("R = cp.Parameter((3, 3), PSD=True)",),
        "R",
        {"R": "n.value * P.value"},
    ),
    Case(
        "Min(p @ p * norm(x - 1), ball)", "p @ p * norm(x - 1)", "Min({write} * norm(x - 1), ball)", (RS,), "r", {"r": "p.value @ p.value"}
    ),
    Case(
        "Min(p @ x, quad_form(x, S) <= 1)",
        "quad_form(x, S)",
        "Min(p @ x, {write} <= 1)",
        (LM,),
        "sum_squares(L @ x)",
        {"L": "np.linalg.cholesky(S.value).T"},
    ),
    # convex functions in disguise
    Case(
        "Min(s / z + z, z >= 0.1)",
        "s / z",
        "Min({write} + z, z >= 0.1)",
        ("s = cp.Parameter(nonneg=True)",),
        "s * inv_pos(z)",
        {"s": "VALUES['s']"},
    ),
    Case("Min(1 / z + z, z >= 0.1)", "1 / z", "Min({write} + z, z >= 0.1)", (), "inv_pos(z)"),
    Case("Min(z * z + z)", "z * z", "Min({write} + z)", (), "square(z)"),
    Case("Min(x @ x + p @ x)", "x @ x", "Min({write} + p @ x)", (), "sum_squares(x)"),
    Case("Min(P @ x @ x + p @ x)", "P @ x @ x", "Min({write} + p @ x)", (), "quad_form(x, P)"),
    Case("Min(sqrt(sum_squares(x - p)) + sum(x) / 2)", "sqrt(sum_squares(x - p))", "Min({write} + sum(x) / 2)", (), "norm(x - p)"),
    Case("Min(z * log(z))", "z * log(z)", "Min({write})", (), "-entr(z)"),
    Case("Min(log(sum(exp(x))), x >= p)", "log(sum(exp(x)))", "Min({write}, x >= p)", (), "log_sum_exp(x)"),
    Case("Min(log(1 + exp(z)), z >= s)", "log(1 + exp(z))", "Min({write}, z >= s)", (), "logistic(z)"),
    Case("Max(sqrt(z * u), z + u <= s)", "z * u", "Max({write}, z + u <= s)", (), "geo_mean(hstack([z, u]))"),
    Case("Min(sum(x), norm(x) == n)", "norm(x)", "Min(sum(x), {write} n)", (), "norm(x) <= "),
]
GEOMETRIC = [
    # cvxpy 1.9.3 calls these sound and solves another problem
    Case(
        "Max(va, va <= max(np.array([1, 2])))",
        "max([1.0, 2.0])",
        "Max(va, va <= {write})",
        (),
        "2",
        kind="DGP",
        gp=True,
        comparable=False,
    ),
    Case(
        "Max(va * vb, va <= 2, vb <= Constant(2) - 1.5)",
        "2 - 1.5",
        "Max(va * vb, va <= 2, vb <= {write})",
        (),
        "0.5",
        kind="DGP",
        comparable=False,
    ),
    Case(
        "Max(va, power(power(2, n), n) >= va)",
        "(2 ** n) ** n",
        "Max(va, {write} >= va)",
        ("r = cp.Parameter(pos=True)",),
        "r",
        {"r": "2 ** (n.value**2)"},
        gp=True,
        comparable=False,
    ),
    Case(
        "Max(va, va <= g + h)", "g + h", "Max(va, va <= {write})", ("r = cp.Parameter(pos=True)",), "r", {"r": "g.value + h.value"}, gp=True
    ),
    Case(
        "Min((g * va) ** s * vb, vb >= 1, va >= 1)",
        "(g * va) ** s",
        "Min({write} ** s * vb, vb >= 1, va >= 1, y == g * va)",
        ("y = cp.Variable(pos=True)", "y == g * va"),
        "y",
    ),
    Case(
        "Min((g * va + vb) ** n, va * vb >= 1)",
        "(g * va + vb) ** n",
        "Min({write} ** n, va * vb >= 1, g * va + vb <= y)",
        ("y = cp.Variable(pos=True)", "g * va + vb <= y"),
        "y",
    ),
    Case(
        "Min((va + vb) ** s, va * vb >= 1)",
        "(va + vb) ** s",
        "Min((va + vb) ** s, va * vb >= 1)",
        ("s = cp.Parameter(nonneg=True)",),
        values={"s": "VALUES['s']"},
        kind="DGP",
    ),
    Case("Max(va * vb, va <= g - vb)", "g - vb", "Max(va * vb, va <= {write})", (), "diff_pos(g, vb)", kind="DGP"),
    Case("Max(va * vb, va <= 1 - vb)", "1 - vb", "Max(va * vb, va <= {write})", (), "one_minus_pos(vb)", kind="DGP"),
    Case("Min(va * vb, va * vb == g + 1 / va)", "g + 1 / va", "Min(va * vb, va * vb >= g + 1 / va)", (), kind="DGP"),
    Case(
        "Min(va * s, va >= 1)",
        "s",
        "Min(va * s, va >= 1)",
        ("s = cp.Parameter(pos=True)",),
        values={"s": "VALUES['s']"},
        kind="DGP",
        gp=True,
    ),
    Case("Min(z * va, z >= 1, va >= 1)", "z", "Min(z * va, z >= 1, va >= 1)", ("z = cp.Variable(pos=True)",), kind="DGP", gp=True),
]


@pytest.mark.filterwarnings("ignore:conv is deprecated")
@pytest.mark.parametrize("case", [*PARAMETRIC, *CURVED, *GEOMETRIC], ids=lambda c: c.problem)
def test_a_violation_is_found_and_its_mend_is_right(case):
    space = leaves()
    problem = eval(case.problem, space)
    first, *others = explain(problem, case.gp)
    assert first.expression == case.blamed
    assert not others
    kind = case.kind if case in PARAMETRIC or case in GEOMETRIC else "DCP"
    assert first.kind == kind
    assert set(first.parameters) == {p.name() for p in eval(first.path, {"problem": problem}).parameters()}
    with pytest.raises(errors.NotDPPError if kind == "DPP" else errors.NotDCPError, match="mend"):
        check(problem, case.gp)

    for quoted in (*case.declare, case.write.replace("builtins_sum", "sum")):
        assert quoted in first.advice
    space["VALUES"] = {name: leaf.value for name, leaf in space.items() if isinstance(leaf, cp.Parameter)}
    before = _optimum(problem, case in GEOMETRIC) if case.comparable else None
    for line in case.declare:
        if " = cp." in line:
            exec(line, space)
    for name, value in case.values.items():
        space[name].value = eval(value, space)
    mended = eval(case.mended.replace("{write}", case.write), space)
    geometric = check(mended, case.gp)
    assert geometric == (case in GEOMETRIC)
    assert mended.is_dpp("dgp") if geometric else mended.is_dpp(quad_form_dpp="qp")
    if before is not None:
        assert _optimum(mended, geometric, enforce_dpp=True) == pytest.approx(before, rel=1e-5, abs=1e-6)


def _optimum(problem, gp, **options):
    """The optimal value, or None where cvxpy does not accept the problem."""
    if not (problem.is_dgp() if gp else problem.is_dcp()):
        return None
    problem.solve(solver="CLARABEL", gp=gp, **(options or {"ignore_dpp": True}))
    assert problem.status == "optimal"
    return problem.value


SOUND = [
    ("Min(quad_form(x, P) + p @ x)", None, False),
    ("Max(p @ x - 2 * quad_form(A @ (x - 1), P), ball)".replace("A @ (x - 1)", "x - 1"), None, False),
    ("Min(quad_form(x, P + np.eye(3)) / 2 + norm(x - p))", None, False),
    ("Min(quad_form(x - p, np.eye(3)) + s * x[0])", None, False),
    ("Min(quad_form(x, P), quad_form(x - p, np.eye(3)) <= 1)", None, False),
    ("Min(n * quad_form(x, np.eye(3)) + m * norm1(x) + norm1(A @ x - q))", None, False),
    ("Min(sum_squares(A @ x - q), x >= p, kron(np.eye(3), X) >> 0)", None, False),
    ("Min(norm(x), sqrt(s) >= norm(x - q))", None, False),
    ("Min(sum(huber(x - p, n)))", None, False),
    ("Min(sum(Variable(3, bounds=[p, None])))", None, False),
    ("Min(va, va >= g)", None, False),
    ("Min(va, va >= g)", True, True),
    ("Min(va * vb, va <= 1, 1 / vb >= g + h, va >= vb / 9)", None, True),
    ("Min(va, va * vb >= g * h, vb ** s <= h)", None, True),
    ("Min(va, va * vb >= 1, vb * (g + h) <= 1)", None, True),
    ("Max(va * vb, va <= diff_pos(g, vb))", None, True),
]


@pytest.mark.parametrize(("source", "gp", "geometric"), SOUND)
def test_a_sound_problem_passes(source, gp, geometric):
    problem = eval(source, leaves())
    assert explain(problem, gp) == []
    assert check(problem, gp) is geometric


def test_only_a_problem_is_a_problem():
    for thing in ("min x", cp.Minimize(cp.Variable()), cp.Variable(), None):
        with pytest.raises(errors.NotAProblemError, match=r"cvxpy\.Problem") as caught:
            check(thing)
        assert isinstance(caught.value, TypeError)
    with pytest.raises(errors.BuildError):
        explain("min x")


@pytest.mark.parametrize("attribute", ["boolean", "integer"])
def test_discrete_variables_are_named(attribute):
    x, k = cp.Variable(2, name="x"), cp.Variable(2, name="choice", **{attribute: True})
    with pytest.raises(errors.IntegerVariableError) as caught:
        check(cp.Problem(cp.Minimize(cp.sum(x)), [x >= k]))
    message = str(caught.value)
    assert all(word in message for word in ("integer", "I-MLE", "relax", "choice"))
    with pytest.raises(errors.IntegerVariableError, match="FiniteSet"):
        check(cp.Problem(cp.Minimize(x[0]), [cp.constraints.FiniteSet(x[0], [1, 2])]))


def test_complex_leaves_are_named():
    z, c, x = cp.Variable(2, complex=True, name="wave"), cp.Parameter(2, complex=True, name="phase"), cp.Variable(2, name="x")
    h = cp.Variable((2, 2), hermitian=True, name="H")
    for problem, name in [
        (cp.Problem(cp.Minimize(cp.norm(z - 1))), "wave"),
        (cp.Problem(cp.Minimize(cp.norm(x - c))), "phase"),
        (cp.Problem(cp.Minimize(cp.norm(1j * x + 2))), "1j"),
        (cp.Problem(cp.Minimize(cp.real(cp.trace(h))), [h >> np.eye(2)]), "H"),
    ]:
        with pytest.raises(errors.UnsupportedConeError, match="complex") as caught:
            check(problem)
        assert name in str(caught.value)


def test_the_error_of_a_concave_maximum_says_so():
    x = cp.Variable(2, name="x")
    with pytest.raises(errors.NotDCPError) as caught:
        check(cp.Problem(cp.Maximize(cp.sum_squares(x))))
    assert "DCP" in str(caught.value)
    assert "concave" in str(caught.value)
    assert "sum_squares(x)" in str(caught.value)


def test_all_violations_are_listed_with_their_places():
    s = leaves()
    problem = eval("Min(norm(x) * p[1] - s * n * sum(x), norm(x) >= 1, sum(multiply(p, q)) <= norm(q) - sum(x))", s)
    found = explain(problem)
    assert [v.kind for v in found] == ["DCP", "DCP", "DPP", "DPP", "DPP"]
    assert [v.place.split(" ")[0] for v in found] == ["objective", "constraints[0]", "objective", "constraints[1]", "constraints[1]"]
    with pytest.raises(errors.NotDCPError) as caught:
        check(problem)
    assert caught.value.violations == tuple(found)
    for v in found:
        assert v.expression in str(caught.value)
        assert v.path in str(caught.value)
    for twin in (pickle.loads(pickle.dumps(caught.value)), copy.deepcopy(caught.value)):
        assert twin.violations == caught.value.violations
        assert str(twin) == str(caught.value)


def test_the_other_discipline_is_offered_where_it_would_do():
    s = leaves()
    with pytest.raises(errors.NotDPPError, match="gp=True"):
        check(eval("Min(g * h * va, va >= 1)", s))
    assert check(eval("Min(g * h * va, va >= 1)", s), gp=True)
    with pytest.raises(errors.NotDCPError, match="leave out gp=True"):
        check(eval("Min(z, z >= s)", s), gp=True)
    with pytest.raises(errors.NotDCPError):
        check(eval("Min(va * vb, va >= 1, vb >= 1)", s), gp=False)


def test_the_names_in_the_advice_are_new():
    problem = eval("Min(n * norm(y - r), y >= p)", leaves() | {"y": cp.Variable(3, name="y"), "r": cp.Parameter(3, name="r")})
    assert "t = cp.Variable" in explain(problem)[0].advice


def test_labels_are_the_users_words():
    s = leaves()
    risk = cp.quad_form(s["x"], s["P"])
    risk.label = "risk"
    violation = explain(cp.Problem(cp.Minimize(s["p"] @ s["x"]), [risk <= 1]))[0]
    assert violation.place == "constraints[0] (risk <= 1)"


@pytest.mark.parametrize(
    "source",
    [
        "Min(quad_form(x - p, np.diag([1, 2, 3])) + q @ x)",
        "Max(q @ x - s * sum(x) - quad_form(x - p, np.diag([1, 2, 3])) / 2, ball)",
        "Min(exp(quad_form(x - p, np.eye(3))) + quad_form(x, P), quad_form(x + q, np.eye(3)) <= 20)",
    ],
)
def test_quadratic_forms_of_a_shifted_point_keep_their_parameters(source):
    """CVXPY 1.9.3 freezes p in these objectives; settled, one compilation serves all values."""
    space = leaves()
    problem = eval(source, space)
    check(problem) if "exp" not in source else None
    settled = settle(problem)
    assert settled.constraints[: len(problem.constraints)] == problem.constraints
    assert settle(settled) is settled
    for scale in (1.0, 1.7):
        space["p"].value = scale * np.array([0.3, -0.2, 0.5])
        assert _optimum(settled, False, enforce_dpp=True) == pytest.approx(
            _optimum(cp.Problem(problem.objective, problem.constraints), False), rel=1e-6
        )


def test_partial_optimization_is_one_atom():
    x, y, p, q = cp.Variable(name="x"), cp.Variable(name="y"), cp.Parameter(name="p"), cp.Parameter(name="q")
    inner = partial_optimize(cp.Problem(cp.Minimize(cp.square(x - y) + p * y), [y >= q]), [y], [x])
    assert explain(cp.Problem(cp.Minimize(inner + x))) == []
    (violation,) = explain(cp.Problem(cp.Maximize(inner)))
    assert violation.kind == "DCP"
    assert "partial_optimize" in violation.expression
    assert explain(cp.Problem(cp.Minimize(p * inner)))
