"""Advice is followed to the letter on random problems: it leads to a DPP problem with the same optimal value.

The advice is read by a small interpreter (declare, pass, add the constraint, write) that knows nothing of the rules, and the
problem is rebuilt from its own text, which also holds `notation.text` to what a user could have typed.
"""

import re

import cvxpy as cp
import numpy as np
import pytest

from layercompiler.problems import notation
from layercompiler.problems.discipline import explain

DECLARE = re.compile(r"declare (\w+) = cp\.(\w+)\(((?:[^()]|\([^()]*\))*)\)")
PASS = re.compile(r"pass `([^`]*)`(?:, computed in your framework,)? as (\w+)")
FACTOR = re.compile(r"pass a factor with (\w+)\.T @ \w+ = (.*?), computed")
TIE = re.compile(r"add the constraint (.*?)(?=; |$| and write)")
REPLACE = re.compile(r"write (.*?) in place of `([^`]*)`")
WRITE = re.compile(r"write ((?:(?!in place of|write ).)*?)(?= and pass|, pass|$)")


class Workspace:
    """Leaves by name with values, and the text of a problem in them."""

    def __init__(self, leaves, objective, constraints):
        self.names = {k: getattr(cp, k) for k in dir(cp) if not k.startswith("_")} | {"cp": cp, "np": np}
        self.names |= {leaf.name(): leaf for leaf in leaves}
        self.objective, self.constraints = objective, constraints

    def problem(self):
        return cp.Problem(eval(self.objective, self.names), [eval(c, self.names) for c in self.constraints])

    def frozen(self):
        """The problem with numbers for its parameters."""
        numbers = {k: cp.Constant(v.value) for k, v in self.names.items() if isinstance(v, cp.Parameter)}
        return cp.Problem(eval(self.objective, self.names | numbers), [eval(c, self.names | numbers) for c in self.constraints])

    def follow(self, violation):
        """Do what the advice says."""
        advice, before = violation.advice, (self.objective, list(self.constraints))
        for name, kind, arguments in DECLARE.findall(advice):
            options = eval(f"dict(shape={arguments})" if arguments.startswith("(") else f"dict({arguments})")
            self.names[name] = getattr(cp, kind)(name=name, **options)
        for source, name in PASS.findall(advice):
            self.names[name].value = np.broadcast_to(eval(source, self.names).value, self.names[name].shape)
        for name, source in FACTOR.findall(advice):
            self.names[name].value = np.linalg.cholesky(eval(source, self.names).value).T
        edits = [(old, new) for new, old in REPLACE.findall(advice)]
        edits += [(violation.expression, new) for new in WRITE.findall(advice)[-1:]]
        for old, new in edits:
            self.objective = self.objective.replace(old, f"({new})")
            self.constraints = [c.replace(old, f"({new})") for c in self.constraints]
        self.constraints += TIE.findall(advice)
        assert (self.objective, self.constraints) != before, advice

    def rewrite(self):
        """Write the problem as `notation` does."""
        problem = self.problem()
        self.objective, self.constraints = notation.text(problem.objective), [notation.text(c) for c in problem.constraints]


def grow(rng, depth, leaves, matrix, form):
    """A random expression of shape (3,)."""
    if depth == 0 or rng.random() < 0.15:
        return leaves[rng.integers(len(leaves))]

    def sub():
        return grow(rng, depth - 1, leaves, matrix, form)

    makers = [
        *[lambda: sub() + sub()] * 3,
        *[lambda: sub() - sub()] * 2,
        *[lambda: cp.multiply(sub(), sub())] * 5,
        lambda: sub() / sub(),
        lambda: cp.norm(sub()) * np.ones(3),
        lambda: cp.exp(sub() / 4),
        lambda: cp.log(sub()),
        lambda: cp.square(sub()),
        lambda: cp.sqrt(sub()),
        lambda: cp.abs(sub()),
        lambda: cp.maximum(sub(), sub()),
        lambda: cp.minimum(sub(), sub()),
        lambda: matrix @ sub(),
        lambda: cp.quad_form(sub(), form) * np.ones(3),
        lambda: cp.sum(sub()) * np.ones(3),
        lambda: cp.quad_over_lin(sub(), cp.sum(leaves[3])) * np.ones(3),
        lambda: cp.convolve(leaves[2][:2], sub()[:2]),
    ]
    return makers[rng.integers(len(makers))]()


def draw(seed):
    """A random problem that is DCP but not DPP, and its leaves; None where the draw is something else."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((3, 3))
    leaves = [
        cp.Variable(3, name="x"),
        cp.Variable(3, name="z"),
        cp.Parameter(3, name="p", value=rng.uniform(0.5, 2, 3)),
        cp.Parameter(3, name="q", nonneg=True, value=rng.uniform(0.5, 2, 3)),
        cp.Parameter(3, name="s", nonneg=True, value=rng.uniform(0.5, 2, 3)),
        cp.Constant([1.0, 2.0, 3.0]),
        cp.Constant([2.0, 2.0, 2.0]),
    ]
    matrix = cp.Parameter((3, 3), name="A", value=root)
    form = cp.Parameter((3, 3), name="P", PSD=True, value=root @ root.T + np.eye(3))
    objective = cp.sum(grow(rng, 3, leaves, matrix, form))
    left, right = grow(rng, 2, leaves, matrix, form), grow(rng, 2, leaves, matrix, form)
    sense = cp.Minimize if rng.random() < 0.6 else cp.Maximize
    bounds = [cp.norm_inf(leaves[0]) <= 5, cp.norm_inf(leaves[1]) <= 5]
    problem = cp.Problem(sense(objective), [left <= right + 9, *bounds])
    named = [*leaves[:5], matrix, form]
    with np.errstate(all="ignore"):
        defined = all(map(is_defined, (objective, left, right)))
    return (problem, named) if defined and problem.is_dcp() and explain(problem, gp=False) else None


def is_defined(e):
    """Whether every part that holds no variables has a finite value: no logarithm of a negative number."""
    return all(map(is_defined, e.args)) and bool(e.variables() or (np.isrealobj(e.value) and np.isfinite(e.value).all()))


def grow_geometric(rng, depth, leaves, exponents):
    """A random positive expression."""
    if depth == 0 or rng.random() < 0.15:
        return leaves[rng.integers(len(leaves))]

    def sub():
        return grow_geometric(rng, depth - 1, leaves, exponents)

    makers = [
        *[lambda: sub() + sub()] * 2,
        *[lambda: sub() * sub()] * 3,
        *[lambda: sub() / sub()] * 2,
        *[lambda: sub() ** exponents[rng.integers(len(exponents))]] * 3,
        lambda: cp.maximum(sub(), sub()),
        lambda: cp.minimum(sub(), sub()),
        lambda: cp.norm(cp.hstack([sub(), sub()])),
        lambda: cp.one_minus_pos(sub() / 64),
    ]
    return makers[rng.integers(len(makers))]()


def draw_geometric(seed):
    """A random problem that is DGP but not DPP, and its leaves; None where the draw is something else."""
    rng = np.random.default_rng(seed)
    leaves = [cp.Variable(name="x", pos=True), cp.Variable(name="z", pos=True)]
    leaves += [cp.Parameter(name=name, pos=True, value=rng.uniform(0.5, 2)) for name in "pqs"]
    leaves += [cp.Constant(0.5)]
    exponents = [2, -0.5, cp.Parameter(name="k", nonneg=True, value=rng.uniform(0.2, 2)), cp.Parameter(name="l", value=rng.uniform(-1, 1))]
    objective, left, right = (grow_geometric(rng, depth, leaves, exponents) for depth in (4, 3, 3))
    sense = cp.Minimize if rng.random() < 0.6 else cp.Maximize
    bounds = [bound for x in leaves[:2] for bound in (x <= 4, x >= 0.25)]
    problem = cp.Problem(sense(objective), [left <= 9 * right, *bounds])
    with np.errstate(all="ignore"):
        defined = all(map(is_defined, (objective, left, right)))
    kinds = {v.kind for v in explain(problem, gp=True)} if defined and problem.is_dgp() else None
    return (problem, [*leaves[:5], *exponents[2:]]) if kinds == {"DPP"} else None


@pytest.fixture
def exact(monkeypatch):
    """Texts in full, constants as numbers."""
    monkeypatch.setattr(notation.text, "__defaults__", (10**6,))
    monkeypatch.setattr(notation, "_constant", lambda e: f"cp.Constant({np.asarray(e.value).tolist()})")


def solve(problem, **options):
    """The optimal value, or None."""
    try:
        problem.solve(solver="CLARABEL", **options)
    except (cp.SolverError, ValueError):
        return None
    return problem.value if problem.status == "optimal" else None


def compare(frozen, mended, gp):
    """Hold the mended problem to the one it came from; False where one of them has no optimum.

    The mended problem's point has to be feasible and as good as claimed for the problem it came from, and no worse than the
    point found for that one directly. (That point's claimed value is not used: CVXPY relaxes some constants of DGP.)
    """
    if solve(frozen, gp=gp) is None or max(np.max(c.violation()) for c in frozen.constraints) > 1e-5:
        return False
    best = frozen.objective.value
    value = solve(mended, gp=gp, enforce_dpp=True)
    if value is None:
        return False
    slack = 1e-4 * (1 + abs(best))
    assert max(np.max(c.violation()) for c in frozen.constraints) < slack
    assert abs(frozen.objective.value - value) < slack
    assert (value - best) * (1 if isinstance(frozen.objective, cp.Minimize) else -1) < slack
    return True


@pytest.mark.parametrize(
    ("draw", "gp", "seed"), [*((draw, False, i) for i in range(0, 240, 60)), *((draw_geometric, True, i) for i in range(0, 400, 200))]
)
@pytest.mark.usefixtures("exact")
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate", "ignore:invalid value:RuntimeWarning", "ignore::FutureWarning")
def test_following_the_advice_leads_to_a_dpp_problem_with_the_same_value(draw, gp, seed):
    followed = compared = 0
    for i in range(seed, seed + (200 if gp else 60)):
        drawn = draw(i)
        if drawn is None:
            continue
        problem, leaves = drawn
        work = Workspace(leaves, notation.text(problem.objective), [notation.text(c) for c in problem.constraints])
        frozen = work.frozen()
        for _ in range(25):
            found = explain(work.problem(), gp=gp)
            if not found:
                break
            assert {v.kind for v in found} == {"DPP"}, (i, str(found[0]))
            work.follow(found[0])
            work.rewrite()
        assert not found, (i, str(found[0]))
        followed += 1
        compared += compare(frozen, work.problem(), gp)
    assert followed > 10
    assert compared > 0.5 * followed
