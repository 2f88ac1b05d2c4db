"""What a jax layer is as an object: arguments, dtypes, failures, copies, threads, devices."""

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from layercompiler.errors import DtypeError, ShapeError, SolveError, UnsupportedTransformError
from layercompiler.jax import Layer
from layercompiler.status import Status
from tests.jax.fake import LIMIT, Problem, data

POINT = data(Problem(), 0)


@pytest.fixture
def layer():
    return Layer(Problem())


def x(layer, *arrays, **named):
    return layer(*arrays, **named)[0]


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_out_is_dtype_in(layer, dtype, x64):
    with jax.enable_x64(x64):
        dtype = jnp.dtype(dtype) if x64 else jax.dtypes.canonicalize_dtype(dtype)
        arrays = [jnp.asarray(a, dtype) for a in POINT]
        for f in (layer, jax.jit(layer)):
            assert {y.dtype for y in f(*arrays)} == {dtype}
        assert {g.dtype for g in jax.jit(jax.grad(lambda *a: x(layer, *a).sum(), (0, 1, 2, 3)))(*arrays)} == {dtype}


def test_float32_without_x64_is_the_rounded_float64_answer(layer):
    with jax.enable_x64(False):
        arrays = [jnp.asarray(a, jnp.float32) for a in POINT]
        single = [
            np.asarray(a, float) for a in (x(layer, *arrays), *jax.jit(jax.grad(lambda *a: x(layer, *a).sum(), (0, 1, 2, 3)))(*arrays))
        ]
        hessian = jax.hessian(lambda q: (x(layer, arrays[0], q, *arrays[2:]) ** 2).sum())(arrays[1])
    arrays = [jnp.asarray(a, float) for a in arrays]
    double = [x(layer, *arrays), *jax.grad(lambda *a: x(layer, *a).sum(), (0, 1, 2, 3))(*arrays)]
    for a, b in zip(single, double, strict=True):
        np.testing.assert_array_equal(a, np.asarray(b).astype(np.float32))
    exact = jax.hessian(lambda q: (x(layer, arrays[0], q, *arrays[2:]) ** 2).sum())(arrays[1])
    np.testing.assert_allclose(hessian, exact, rtol=0, atol=4e-7 * np.abs(exact).max())


def test_lists_integers_and_names(layer):
    P, q, A, b = POINT
    want = x(layer, *POINT)
    np.testing.assert_array_equal(x(layer, P.tolist(), q, A.tolist(), b=b), want)
    np.testing.assert_array_equal(layer(b=b, A=A, q=q, P=P)[0], want)
    assert layer(np.eye(3, dtype=int), [1, 2, 3], [[1, 0, 0], [0, 1, 0]], [0, 0])[0].dtype == jnp.float64


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda P, q, A, b: (P, q, A), ShapeError, "got 3"),
        (lambda P, q, A, b: (P, q[:2], A, b), ShapeError, "'q'"),
        (lambda P, q, A, b: (P, np.zeros((2, 3)), A, np.zeros((3, 2))), ShapeError, "batch"),
        (lambda P, q, A, b: (P, q + 1j, A, b), DtypeError, "complex"),
        (lambda P, q, A, b: (P, None, A, b), DtypeError, "'q'"),
        (lambda P, q, A, b: (P, "abc", A, b), DtypeError, "'q'"),
        (lambda P, q, A, b: (P, [[1], [2, 3]], A, b), DtypeError, "'q'"),
    ],
)
def test_wrong_arguments(layer, change, error, says):
    with pytest.raises(error, match=says):
        layer(*change(*POINT))


FAILING = (*POINT[:3], np.stack([POINT[3], [2 * LIMIT, 0.0], POINT[3]]))


def test_a_failure_raises_our_error_outside_of_jit(layer):
    for f in (layer, jax.vmap(layer, (None, None, None, 0)), jax.grad(lambda *a: x(layer, *a).sum())):
        with pytest.raises(SolveError, match="primal infeasible") as caught:
            f(*FAILING)
        assert caught.value.indices == ((1,),)


def test_a_failure_inside_jit_carries_our_text_and_prints_nothing(layer, capfd):
    for f in (layer, jax.grad(lambda *a: x(layer, *a).sum())):
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"SolveError: an instance is primal infeasible \(LC-SOLVE\)"):
            jax.block_until_ready(jax.jit(f)(*FAILING))
    assert capfd.readouterr() == ("", "")


def test_a_flagged_failure_is_nan_with_zero_derivatives_and_leaves_the_others_alone():
    layer = Layer(Problem(on_error="flag"))
    for f in (layer, jax.jit(layer)):
        values = f(*FAILING)[0]
        assert np.isnan(values[1]).all()
        np.testing.assert_array_equal(values[0], x(layer, *POINT))
    gradient = jax.jit(jax.grad(lambda b: jnp.nansum(x(layer, *POINT[:3], b))))(FAILING[3])
    assert (gradient[1] == 0).all() and np.abs(gradient[0]).max() > 0
    hessian = jax.hessian(lambda b: (jnp.nan_to_num(x(layer, *POINT[:3], b)) ** 2).sum())(FAILING[3])
    assert np.isfinite(hessian).all() and (hessian[1] == 0).all()


def test_solve_reports_and_refuses_tracers(layer):
    solution = Layer(Problem(on_error="flag")).solve(*FAILING)
    assert solution.status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.SOLVED]
    for transformed in (jax.jit(layer.solve), jax.vmap(layer.solve), jax.jacfwd(layer.solve)):
        with pytest.raises(UnsupportedTransformError, match="traced"):
            transformed(*(a[None] for a in POINT))


def test_copies_and_repr(layer):
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(x(other, *POINT), x(layer, *POINT))
    assert "QP layer" in repr(layer) and "parameters (P" in repr(layer)


def test_no_pytree(layer):
    assert jax.tree.leaves(layer) == [layer]


def test_threads_give_the_serial_results(layer):
    jitted = jax.jit(jax.grad(lambda *a: (x(layer, *a) ** 3).sum(), (0, 1, 2, 3)))

    def gradient(*arrays):
        with jax.enable_x64(True):  # a setting of the thread
            return jitted(*arrays)

    batches = [data(Problem(), k, (1 + k % 4,)) for k in range(24)]
    serial = [gradient(*b) for b in batches]
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(serial, pool.map(lambda b: gradient(*b), batches), strict=True):
            for u, v in zip(a, b, strict=True):
                np.testing.assert_array_equal(u, v)


def test_float64_by_context_survives_other_threads(layer):
    arrays = [jnp.asarray(a) for a in POINT]  # the context of this thread is float64, that of a new one is not
    compiled = jax.jit(jax.grad(lambda *a: x(layer, *a).sum(), (0, 1, 2, 3))).lower(*arrays).compile()
    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(lambda: jax.config.jax_enable_x64).result()
        got = pool.submit(lambda: jax.block_until_ready(compiled(*arrays))).result()
    for g, want in zip(got, compiled(*arrays), strict=True):
        assert g.dtype == np.float64
        np.testing.assert_array_equal(g, want)


def test_large_arrays_on_one_core_do_not_wait_for_themselves():
    code = """
import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, numpy as np
from layercompiler.jax import Layer
from tests.jax.fake import Problem, data
problem = Problem(80, 20); layer = Layer(problem); P, q, A, b = data(problem, 0, (16,))
step = jax.jit(jax.grad(lambda P, q: (layer(P @ P.swapaxes(-1, -2) + P, layer(P, q, A, b)[0], A, b)[0]).sum(), (0, 1)))
for k in range(3): jax.block_until_ready(step(P * 1.0, q))
print("done")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout.strip() == "done", run.stderr[-2000:]


def test_sharded_programs():
    code = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as S
from layercompiler.jax import Layer
from tests.jax.fake import Problem, data
problem = Problem(); layer = Layer(problem); P, q, A, b = data(problem); b = data(problem, 1, (4,))[3]
jax.config.update("jax_enable_x64", True)
mesh = Mesh(np.array(jax.devices()), ("d",)); split = jax.device_put(b, NamedSharding(mesh, S("d")))
loss = lambda A, b: (layer(P, q, A, b)[0] ** 3).sum()
want = jax.grad(loss, (0, 1))(A, b)
def psum(A, b): return jax.lax.psum(loss(A, b), "d")
mapped = jax.shard_map(jax.grad(psum, (0, 1)), mesh=mesh, in_specs=(S(), S("d")), out_specs=(S(), S("d")))
for got in (jax.jit(jax.grad(loss, (0, 1)))(A, split), jax.grad(loss, (0, 1))(A, split), jax.jit(mapped)(A, split)):
    for u, v in zip(got, want): np.testing.assert_allclose(np.asarray(u), np.asarray(v), rtol=1e-12, atol=1e-12)
other = layer(P, q, A, jax.device_put(b, jax.devices()[1]))[0]
assert other.devices() == {jax.devices()[1]}
print("done")
"""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert run.stdout.strip() == "done", run.stderr[-2000:]


def test_what_is_remembered_is_bounded_and_only_for_derivatives(layer):
    memory = layer._host.memory
    for _ in range(3):
        layer(*POINT)
    assert len(memory) == 0
    gradient = jax.jit(jax.grad(lambda *a: x(layer, *a).sum()))
    for k in range(9):
        gradient(*data(Problem(), k))
    assert 0 < len(memory) <= 4


def test_memory_is_keyed_by_the_exact_values():
    from layercompiler.memory import Memory

    problem = Problem()
    memory = Memory(problem)
    first = memory.solve(POINT, keep=True)
    assert memory.at([np.array(a) for a in POINT], first.z.copy()) is first
    moved = (np.nextafter(POINT[0], 9), *POINT[1:])
    assert memory.at(moved, first.z) is not first
    assert memory.at([a.astype(np.float32) for a in POINT], first.z) is not first
