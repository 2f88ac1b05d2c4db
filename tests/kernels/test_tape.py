"""Tapes: machine code and interpreter give the same bits, packs those of singles, and functions are right to two units."""

import itertools

import mpmath
import numpy as np
import pytest

from layercompiler import kernels
from layercompiler.expressions.scalars import CODES, NAMES
from layercompiler.kernels.tape import Slot, Tape

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not built")
CONSTANTS = np.array([0.5, -1.25, 0.0])
UNARY = [*NAMES[7:28]]
BINARY = ["add", "sub", "mul", "div", "atan2", "pow", "less", "less_equal", "equal", "min", "max"]
SIMPLE = ["add", "sub", "mul", "div"]


def random_code(rng, registers, inputs, outputs, length, heavy):
    """Instructions that read what was written before."""
    code, written = [], [*range(len(CONSTANTS))]

    def some():
        return int(written[rng.integers(len(written))])

    for k in range(inputs + length):
        to, pick = int(rng.integers(len(CONSTANTS), registers)), rng.random()
        if k < inputs or pick < 0.1:
            code.append((CODES["load"], to, k if k < inputs else int(rng.integers(inputs)), 0, 0))
        elif pick < 0.2:
            code.append((CODES[UNARY[rng.integers(len(UNARY))] if heavy else "neg"], to, some(), 0, 0))
        elif pick < 0.4:
            name = ("fma", "fms", "fnma")[rng.integers(3)] if pick < 0.3 else "select"
            code.append((CODES[name], to, some(), some(), some()))
        else:
            code.append((CODES[(BINARY if heavy else SIMPLE)[rng.integers(len(BINARY if heavy else SIMPLE))]], to, some(), some(), 0))
        written.append(to)
    return np.array([*code, *((CODES["store"], 0, some(), k, 0) for k in range(outputs))], np.int32)


@pytest.mark.parametrize("seed", range(60))
def test_machine_code_is_the_interpreter_and_packs_are_singles(seed):
    rng = np.random.default_rng(seed)
    registers, inputs, outputs, factors, batch = (int(rng.integers(a, b)) for a, b in ((4, 120), (1, 20), (1, 20), (1, 60), (3, 12)))
    code = random_code(rng, registers, inputs, outputs, int(rng.integers(20, 600)), seed % 3 == 0)
    reads = [Slot(0, rng.integers(-1, 40, factors if rng.random() < 0.5 else 1)) for _ in range(inputs)]
    adds = [Slot(int(rng.integers(2)), np.arange(factors) * outputs + k) for k in range(outputs)]  # no place twice: order is no matter
    x = rng.standard_normal((batch, 40)) * np.exp(rng.standard_normal((batch, 40)))
    found = []
    for machine in (True, False):
        tape = Tape(code, CONSTANTS, registers, reads, adds, factors, machine=machine)
        together, single = np.zeros((2, batch, factors * outputs)), np.zeros((2, batch, factors * outputs))
        tape.run(batch, [x], [40], list(together), [factors * outputs] * 2)
        for b in range(batch):
            tape.run(1, [x[b]], [40], [single[0, b], single[1, b]], [0, 0])
        np.testing.assert_array_equal(together, single)
        found.append(together)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("machine", [True, False])
def test_places_that_many_factors_share_are_added_in_one_order(machine):
    rng = np.random.default_rng(1)
    code = random_code(rng, 30, 6, 9, 80, False)
    reads = [Slot(0, rng.integers(-1, 40, 37)) for _ in range(6)]
    adds = [Slot(0, rng.integers(-1, 5, 37 if k else 1)) for k in range(9)]
    tape, x = Tape(code, CONSTANTS, 30, reads, adds, 37, machine=machine), rng.standard_normal((11, 40))
    together, single = np.zeros((11, 5)), np.zeros((11, 5))
    tape.run(11, [x], [40], [together], [5])
    for b in range(11):
        tape.run(1, [x[b]], [40], [single[b]], [0])
    np.testing.assert_array_equal(together, single)


def run(name, *x):
    """One function of many numbers."""
    n, every = len(x[0]), np.arange(len(x[0]))
    code = [(CODES["load"], i, i, 0, 0) for i in range(len(x))] + [(CODES[name], 2, 0, len(x) - 1, 0), (CODES["store"], 0, 2, 0, 0)]
    y = np.zeros(n)
    Tape(np.array(code, np.int32), np.zeros(0), 3, [Slot(i, every) for i in range(len(x))], [Slot(0, every)], n).run(
        1, list(x), [0] * len(x), [y], [0]
    )
    return y


@pytest.mark.parametrize("name", ["sin", "cos", "atan", "log", "atan2"])
def test_elementary_functions(name):
    rng = np.random.default_rng(0)
    wide = rng.standard_normal(1000) * np.exp(rng.uniform(-20, 20, 1000))
    turns = np.concatenate(
        [rng.uniform(-7, 7, 800), rng.uniform(-1e5, 1e5, 400), 1e9 * rng.standard_normal(9), np.arange(-300, 60000, 61) * np.pi / 2]
    )
    other = np.concatenate([wide[:500] * rng.uniform(-2, 2, 500), rng.standard_normal(500)])
    positive = np.concatenate([np.exp(rng.uniform(-700, 700, 500)), 1 + rng.uniform(-0.3, 0.3, 500), [5e-324, 1e308]])
    given = {"atan": (wide,), "log": (positive,), "atan2": (wide, other)}.get(name, (turns,))
    found = run(name, *given)
    with mpmath.workprec(200):
        want = [getattr(mpmath, name)(*(mpmath.mpf(float(v)) for v in row)) for row in zip(*given, strict=True)]
        gaps = [abs(mpmath.mpf(float(a)) - b) / np.spacing(abs(float(b))) for a, b in zip(found, want, strict=True)]
    assert max(gaps) < 2


def test_elementary_functions_of_special_numbers():
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e300, -1e300, 5e-324]
    with np.errstate(all="ignore"):
        for name, plain in (("sin", np.sin), ("cos", np.cos), ("atan", np.arctan), ("log", np.log)):
            np.testing.assert_allclose(run(name, np.array(special)), plain(special), rtol=1e-15)
        y, x = np.array(list(itertools.product(special, special))).T
        np.testing.assert_allclose(run("atan2", y.copy(), x.copy()), np.arctan2(y, x), rtol=1e-15)
