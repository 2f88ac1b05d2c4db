"""The path of devices, on the host's tensors in their stead: no number leaves the device but for the few questions of a loop."""

import pytest

from layercompiler import arrays
from layercompiler.solvers.interior_point import Program, Settings, Symmetric, linear_solve, solve
from tests.solvers.interior_point import programs

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402


class Questions(TorchDispatchMode):
    """Counts the times that the host waits for a number, and sizes that depend on numbers."""

    def __init__(self):
        super().__init__()
        self.count = self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        waits = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default
        self.count += function in waits
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["std", "optnet"])
def test_a_solve_and_its_derivative_ask_a_handful_of_questions(kind, monkeypatch):
    xp, settings = arrays.get("torch"), Settings(compact=False, every=4)
    numbers = [xp.new(a) for a in programs.family(kind, 20, 20, 5, 8)]
    program = Program(xp, Symmetric(20), *numbers)
    right = tuple(torch.ones_like(a) for a in (program.p, program.b, program.h))

    def run():
        found = solve(program, settings)
        return found, linear_solve(program, found.point.v, found.by_dual, found.factors, right, settings)

    for _ in range(3):  # what is recorded, and optimized then, looks at constants
        expected, step = run()

    def refused(*_):
        raise AssertionError("a tensor went to the host")

    for name in ("numpy", "tolist", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refused)
    with Questions() as questions:
        found, again = run()
    assert questions.operations > 100
    assert questions.count <= 16
    assert bool((found.status == 0).all()) and bool(found.by_dual.all())
    assert all(torch.equal(a, b) for a, b in zip((found.point.x, *again), (expected.point.x, *step), strict=True))
