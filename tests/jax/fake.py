"""A compiled problem in closed form: min 1/2 x'Px + q'x s.t. Ax = b, with K w = r its optimality conditions and w = (x, y).

K and r are linear in the parameters, so with u = K^-T g and w' = K^-1 (r' - K' w) every derivative is a few products.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from layercompiler.errors import ShapeError, SolveError
from layercompiler.solvers import Options
from layercompiler.status import Solution, Status

LIMIT = 1e6  # instances with b[0] above it fail


def _fold(value, shape):
    """Sum over the axes that broadcasting repeated."""
    value = value.sum(axis=tuple(range(value.ndim - len(shape))))
    return value.sum(axis=tuple(i for i, k in enumerate(shape) if k == 1 and value.shape[i] != 1), keepdims=True)


def _times(M, v):
    return (M @ v[..., None])[..., 0]


class Evaluation:
    def __init__(self, problem, arrays, z):
        self.problem, self.arrays, self.z = problem, arrays, z
        self.failed = np.isnan(z).any(-1)
        self.info = SimpleNamespace(status=np.where(self.failed, Status.PRIMAL_INFEASIBLE, Status.SOLVED))
        self.K = np.where(self.failed[..., None, None], np.eye(problem.zsize), problem.matrix(arrays))
        problem.factorizations += 1

    @property
    def outputs(self):
        return self.z[..., : self.problem.n], self.z[..., self.problem.n :]

    def solve(self, r, transpose=False):
        K = np.swapaxes(self.K, -1, -2) if transpose else self.K
        return np.where(self.failed[..., None], 0.0, np.linalg.solve(K, np.broadcast_to(r, self.z.shape)[..., None])[..., 0])

    def adjoint(self, cotangents):
        for g, shape in zip(cotangents, self.problem.results, strict=True):
            assert g is None or g.shape == (*self.z.shape[:-1], *shape)
        parts = [
            np.zeros((*self.z.shape[:-1], k)) if g is None else np.asarray(g, float)
            for g, (k,) in zip(cotangents, self.problem.results, strict=True)
        ]
        return self.solve(np.concatenate(parts, -1), transpose=True)

    def tangent(self, tangents):
        for h, a in zip(tangents, self.arrays, strict=True):
            assert h is None or h.shape == a.shape
        full = [np.zeros(a.shape) if h is None else np.asarray(h, float) for h, a in zip(tangents, self.arrays, strict=True)]
        return self.problem.matrix(full), self.solve(self.problem.vector(full) - _times(self.problem.matrix(full), self.point))

    @property
    def point(self):
        return np.where(self.failed[..., None], 0.0, self.z)

    def read(self, w):
        return w[..., : self.problem.n], w[..., self.problem.n :]

    def pull(self, K, r):
        n = self.problem.n
        parts = (K[..., :n, :n], -r[..., :n], K[..., n:, :n] + np.swapaxes(K[..., :n, n:], -1, -2), r[..., n:])
        return tuple(
            _fold(np.broadcast_to(p, (*self.z.shape[:-1], *s)), a.shape)
            for p, s, a in zip(parts, self.problem.shapes, self.arrays, strict=True)
        )

    def vjp(self, cotangents):
        u = self.adjoint(cotangents)
        return self.pull(-u[..., :, None] * self.point[..., None, :], u)

    def jvp(self, tangents):
        return self.read(self.tangent(tangents)[1])

    def second(self, first, other):
        (K1, w1), (K2, w2) = self.tangent(first), self.tangent(other)
        return self.read(self.solve(-_times(K1, w2) - _times(K2, w1)))

    def hvp(self, cotangents, tangents):
        u, (K, w) = self.adjoint(cotangents), self.tangent(tangents)
        v = self.solve(_times(np.swapaxes(K, -1, -2), u), transpose=True)
        return self.pull(v[..., :, None] * self.point[..., None, :] - u[..., :, None] * w[..., None, :], -v)


class Problem:
    def __init__(self, n=3, m=2, on_error="raise"):
        self.n, self.m, self.zsize, self.on_error, self.solver = n, m, n + m, on_error, "fake"
        self.shapes, self.results = ((n, n), (n,), (m, n), (m,)), ((n,), (m,))
        self.parameters = tuple(SimpleNamespace(name=k, shape=s) for k, s in zip("PqAb", self.shapes, strict=True))
        self.outputs = tuple(SimpleNamespace(name=k, shape=s) for k, s in zip("xy", self.results, strict=True))
        self.fingerprint = f"fake quadratic program {n} {m}"
        self.evaluations = self.factorizations = 0
        self.options, self.starts, self.given = Options(), [], []

    def describe(self):
        return f"QP layer: 4 parameters (P ({self.n}, {self.n}), ...), outputs x ({self.n},), y ({self.m},)"

    def lead(self, arrays):
        return np.broadcast_shapes(*(np.shape(a)[: np.ndim(a) - len(s)] for a, s in zip(arrays, self.shapes, strict=True)))

    def matrix(self, arrays):
        P, _, A, _ = arrays
        K = np.zeros((*self.lead(arrays), self.zsize, self.zsize))
        K[..., : self.n, : self.n], K[..., self.n :, : self.n], K[..., : self.n, self.n :] = P, A, np.swapaxes(A, -1, -2)
        return K

    def vector(self, arrays):
        _, q, _, b = arrays
        r = np.zeros((*self.lead(arrays), self.zsize))
        r[..., : self.n], r[..., self.n :] = -q, b
        return r

    def arguments(self, args, kwargs):
        names = [p.name for p in self.parameters]
        if unknown := [k for k in kwargs if k not in names]:
            raise ShapeError(f"no parameter is called {unknown[0]!r}", mend=f"the parameters are {names}")
        values = [*args, *(kwargs[k] for k in names[len(args) :] if k in kwargs)]
        if len(values) != len(names):
            raise ShapeError("wrong number of parameters", expected=str(len(names)), got=str(len(values)))
        return values

    def batch_shape(self, shapes):
        for shape, p in zip(shapes, self.parameters, strict=True):
            if tuple(shape[len(shape) - len(p.shape) :]) != p.shape:
                raise ShapeError("wrong shape", where=f"parameter {p.name!r}", expected=str(p.shape), got=str(tuple(shape)))
        try:
            return np.broadcast_shapes(*(s[: len(s) - len(p.shape)] for s, p in zip(shapes, self.parameters, strict=True)))
        except ValueError as error:
            raise ShapeError("the batch shapes do not broadcast", got=str(list(shapes))) from error

    def evaluate(self, arrays, *, warm_start=None, options=None):
        self.evaluations += 1
        self.starts.append(warm_start)
        self.given.append(options)
        arrays = [np.asarray(a, float) for a in arrays]
        self.batch_shape([a.shape for a in arrays])
        failed = np.broadcast_to(arrays[3][..., 0] > LIMIT, self.lead(arrays))
        K = np.where(failed[..., None, None], np.eye(self.zsize), self.matrix(arrays))
        z = np.linalg.solve(K, self.vector(arrays)[..., None])[..., 0]
        z[failed] = np.nan
        evaluation = Evaluation(self, arrays, z)
        if failed.any() and self.on_error == "raise":
            raise SolveError("an instance is primal infeasible", indices=tuple(map(tuple, np.argwhere(failed))), where="instance 1")
        return evaluation

    def restore(self, arrays, z, options=None):
        return Evaluation(self, [np.asarray(a, float) for a in arrays], z)

    def solve(self, *arrays, warm_start=None, options=None):
        evaluation = self.evaluate(arrays)
        values = dict(zip("xy", evaluation.outputs, strict=True))
        return Solution(evaluation.outputs, values, np.zeros(evaluation.failed.shape), evaluation.info, evaluation.z)


def data(problem, seed=0, batch=()):
    rng = np.random.default_rng(seed)
    n, m = problem.n, problem.m
    M = rng.normal(size=(*batch, n, n))
    return (
        M @ np.swapaxes(M, -1, -2) + np.eye(n),
        rng.normal(size=(*batch, n)),
        rng.normal(size=(*batch, m, n)),
        rng.normal(size=(*batch, m)),
    )
