"""The bindings behind one signature: `solve(layer, arrays) -> (outputs, vjp, residual)`, numpy in and out."""

import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")


def solve(framework, layer, arrays):
    """Outputs of a layer, a function from cotangents to gradients, and the residual of every instance."""
    return _SOLVE[framework](layer, [np.asarray(a, dtype=float) for a in arrays])


def _numpy(layer, arrays):
    evaluation = layer.compiled.evaluate(arrays)
    for direct, held in zip(layer(*arrays), evaluation.outputs, strict=True):
        np.testing.assert_array_equal(direct, held)
    return evaluation.outputs, evaluation.vjp, evaluation.info.residual


def _torch(layer, arrays):
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    outputs = layer(*tensors)
    residual = layer.solve(*[t.detach() for t in tensors]).info.residual

    def vjp(cotangents):
        w = [torch.tensor(c) for c in cotangents]
        gradients = torch.autograd.grad(outputs, tensors, w, retain_graph=True, allow_unused=True)
        return [np.zeros(t.shape) if g is None else g.numpy() for g, t in zip(gradients, tensors, strict=True)]

    return [o.detach().numpy() for o in outputs], vjp, np.asarray(residual)


def _jax(layer, arrays):
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        outputs, pull = jax.vjp(lambda *a: layer(*a), *[jax.numpy.asarray(a) for a in arrays])
        residual = layer.solve(*arrays).info.residual

    def vjp(cotangents):
        with jax.enable_x64(True):
            return [np.asarray(g) for g in pull(tuple(jax.numpy.asarray(c) for c in cotangents))]

    return [np.asarray(o) for o in outputs], vjp, np.asarray(residual)


def _tensorflow(layer, arrays):
    tf = pytest.importorskip("tensorflow")
    tensors = [tf.constant(a) for a in arrays]
    with tf.GradientTape(persistent=True) as tape:
        for t in tensors:
            tape.watch(t)
        outputs = layer(*tensors)
    residual = layer.solve(*tensors).info.residual

    def vjp(cotangents):
        w = [tf.constant(c) for c in cotangents]
        gradients = tape.gradient(list(outputs), tensors, w, unconnected_gradients="zero")
        return [np.asarray(g) for g in gradients]

    return [np.asarray(o) for o in outputs], vjp, np.asarray(residual)


_SOLVE = {"numpy": _numpy, "torch": _torch, "jax": _jax, "tensorflow": _tensorflow}
