"""The lanes engine against Clarabel at 1e-9: many instances of every corpus family, many random structures of all cones."""

import itertools
from functools import cache

import numpy as np
import pytest

import layercompiler as lc
from layercompiler import kernels
from layercompiler.cones import Product, cone_from_record
from layercompiler.programs.affine import AffineMap
from layercompiler.programs.cone import ConeProgram, Data, OutputSpec, Structure
from layercompiler.solvers import Options, engine
from tests.corpus.stored import case, names
from tests.kernels.random_programs import programs, structure

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not built")
TIGHT = 1e-9


def both(program, thetas):
    """Evaluations of one program by default and by Clarabel, with the optimal value as the last output."""
    ours = lc.CompiledProblem(program, "auto", "flag")
    theirs = lc.CompiledProblem(program, "clarabel", "flag", Options(engine_tolerance=TIGHT))
    return ours.evaluate(thetas), theirs.evaluate(thetas)


def tally(ours, theirs):
    """(instances, solved by the first engine, disagreements): a disagreement is another value or another verdict, unflagged."""
    a, b = np.asarray(ours.solution().value), np.asarray(theirs.solution().value)
    first = np.array([e == "lanes" for e in np.atleast_1d(ours.info.engine)])
    both_solved = ours.info.ok & theirs.info.ok
    off = both_solved & (np.abs(a - b) > 1e-7 * (1 + np.abs(b)))
    # A verdict differs where one side is solved and the other calls the instance infeasible or unbounded.
    verdicts = {int(lc.Status.PRIMAL_INFEASIBLE), int(lc.Status.DUAL_INFEASIBLE)}
    certain = lambda info: np.isin(info.status, list(verdicts))  # noqa: E731
    off |= (ours.info.ok & certain(theirs.info)) | (certain(ours.info) & theirs.info.ok)
    return a.size, int(first.sum()), int(off.sum()), int((~ours.info.ok & theirs.info.ok).sum())


@cache
def family(name):
    c = case("small", name)
    return lc.compile(c.problem, parameters=c.parameters, variables=c.variables).program


def draw(name, count, seed):
    c, rng = case("small", name), np.random.default_rng([seed, len(name)])
    thetas = [c.sample(rng) for _ in range(count)]
    return [np.stack([np.asarray(t[j], dtype=float) for t in thetas]) for j in range(len(c.parameters))]


@pytest.mark.parametrize("name", names("small"))
def test_ten_instances_of_every_family(name):
    total, first, off, lost = tally(*both(family(name), draw(name, 10, 0)))
    assert (total, off, lost) == (10, 0, 0)
    assert first >= 9


def test_a_kink_between_the_rough_point_and_the_solution_is_crossed():
    """A constraint is active with a multiplier of 1e-7: the right piece is reached only through points with a larger residual."""
    thetas = [t[[420, 474, 552, 598, 829]] for t in draw("pnorm_regression", 830, 1)]
    info = lc.CompiledProblem(family("pnorm_regression"), "auto", "flag").evaluate(thetas).info
    assert info.engine.tolist() == ["lanes"] * 5 and info.residual.max() < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("name", names("small"))
def test_a_thousand_instances_of_every_family(name):
    total, first, off, lost = tally(*both(family(name), draw(name, 1000, 1)))
    print(f"{name}: {total} instances, {total - first} by another engine, {off} off, {lost} flagged that Clarabel solves")
    assert (off, lost) == (0, 0)
    assert total - first <= 5


def fixed_program(n, P, A, cones, data):
    """A program without parameters from patterns and one instance's numbers."""
    blocks = []
    for kind, group in itertools.groupby(cones, key=lambda c: c):
        count, size = len(list(group)), kind[1]
        name = kind[0]
        single = name in ("zero", "nonnegative", "exponential")
        record = [] if single else [(size,) if name == "power" else size]
        blocks.append((cone_from_record(name, [list(r) if isinstance(r, tuple) else r for r in record]), int(size) if single else count))
    s = Structure(n, *(np.asarray(i, dtype=np.intp) for i in (*P, *A)), Product(tuple(blocks)))
    P_values, q, A_values, b = data
    maps = [AffineMap(np.asarray(v, dtype=float), ()) for v in (P_values, q, [0.0], A_values, b)]
    x = OutputSpec("x", (n,), "primal", np.arange(n), np.arange(n), np.ones(n))
    return ConeProgram(s, *maps, parameters=(), channels=(), outputs=(x,), value=OutputSpec("value", (), "value"))


KINDS = [k for k in ("l", "zl", "q", "zlq", "e", "zle", "p", "zlp", "s", "zls", "zlqsep", "lqe", "lqp", "zqs", "lep")]


def mixed(count, seed):
    """(programs, tried by another engine, wrong verdicts or values) over random structures; kinds of programs take turns."""
    rng = np.random.default_rng(seed)
    fallen, wrong, total = 0, [], 0
    for i in range(count):
        kinds = KINDS[i % len(KINDS)]
        n, cones = structure(rng, kinds)
        verdict = ("solvable", "solvable", "solvable", "primal", "dual")[rng.integers(5)]
        P, A, data = programs(rng, n, cones, 1, verdict)
        # A row that the construction leaves at rounding noise would make the program feasible, at a point of size 1e16.
        data = (*data[:2], np.where(np.abs(data[2]) < 1e-13, 0.0, data[2]), data[3])
        program = fixed_program(n, P, A, cones, [v[0] for v in data])
        compiled = lc.CompiledProblem(program, "auto", "flag")
        info = (found := compiled.evaluate([])).info
        total += 1
        fallen += str(info.engine) != "lanes"
        status = lc.Status(int(info.status))
        if verdict != "solvable":
            # Random data may admit both certificates, and each is a true statement; what must not happen is "solved".
            if status not in (lc.Status.PRIMAL_INFEASIBLE, lc.Status.DUAL_INFEASIBLE):
                wrong.append((i, kinds, verdict, status))
            continue
        numbers = (np.asarray(v, dtype=float).reshape(1, -1) for v in (data[0], data[1], [0.0], data[2], data[3]))
        tight = engine("clarabel")(program.structure).solve(Data(*numbers), TIGHT, Options(), None)
        reference = float(_objective(program.structure, data, tight.x[0]))
        value = float(found.solution().value)
        if status != lc.Status.SOLVED or (tight.status[0] == lc.Status.SOLVED and abs(value - reference) > 1e-7 * (1 + abs(reference))):
            wrong.append((i, kinds, verdict, status, value, reference, int(tight.status[0])))
    return total, fallen, wrong


def _objective(s, data, x):
    P, q = np.zeros((s.n, s.n)), data[1][0]
    P[s.P_rows, s.P_cols] = P[s.P_cols, s.P_rows] = data[0][0]
    return 0.5 * x @ P @ x + q @ x


def test_mixed_random_structures():
    total, fallen, wrong = mixed(150, 0)
    assert total == 150
    assert wrong == []
    assert fallen <= 3


@pytest.mark.slow
def test_five_thousand_mixed_random_structures():
    total, fallen, wrong = 0, 0, []
    for seed in range(1, 21):
        found = mixed(250, seed)
        total, fallen, wrong = total + found[0], fallen + found[1], wrong + found[2]
        print(f"{total} structures, {fallen} by another engine, {len(wrong)} wrong: {wrong[:5]}", flush=True)
    assert wrong == []
    assert fallen <= 25
