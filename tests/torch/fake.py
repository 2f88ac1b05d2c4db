"""A compiled problem in closed form: min 1/2 x'Px + q'x s.t. Ax = b + s 1, whose KKT system every derivative comes from exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from layercompiler.errors import ShapeError, SolveError
from layercompiler.solvers import Options
from layercompiler.status import Info, Solution, Status


@dataclass(frozen=True)
class Spec:
    name: str
    shape: tuple[int, ...]


def _sum_to(array, shape):
    lead = array.ndim - len(shape)
    array = array.sum(axis=tuple(range(lead)))
    axes = tuple(i for i, k in enumerate(shape) if k == 1 and array.shape[i] != 1)
    return array.sum(axis=axes, keepdims=True)


class FakeEvaluation:
    def __init__(self, problem, arrays, z):
        self.problem, self.arrays, self.z = problem, arrays, z
        self.outputs = problem.read(z)
        self.K, _ = problem.system(arrays)
        self.failed = np.isnan(z).any(-1)
        batch = z.shape[:-1]
        status = np.where(self.failed, Status.FAILED, Status.SOLVED).astype(np.int8)
        zeros = np.zeros(batch)
        self.info = Info(status, zeros, zeros.astype(int), zeros.astype(int), zeros > 0, zeros == 0, np.full(batch, "fake"), 0.0)

    def _solve(self, r, transpose=False):
        K = np.swapaxes(self.K, -1, -2) if transpose else self.K
        K = np.where(self.failed[..., None, None], np.eye(K.shape[-1]), K)
        w = np.linalg.solve(K, np.broadcast_to(r, (*K.shape[:-1],))[..., None])[..., 0]
        return np.where(self.failed[..., None], 0.0, w)

    @property
    def _z(self):
        return np.where(self.failed[..., None], 0.0, self.z)

    def _gather(self, cotangents):
        g = np.zeros(self.z.shape)
        n = self.problem.n
        x, y, t = cotangents
        if x is not None:
            g[..., :n] += x
        if y is not None:
            g[..., n:] += y
        if t is not None:
            g[..., :n] += t[..., None]
        return g

    def _pull(self, gK, gr):
        n = self.problem.n
        parts = (gK[..., :n, :n], -gr[..., :n], gK[..., n:, :n] + np.swapaxes(gK[..., :n, n:], -1, -2), gr[..., n:], gr[..., n:].sum(-1))
        return tuple(_sum_to(p, a.shape) for p, a in zip(parts, self.arrays, strict=True))

    def _push(self, tangents):
        filled = [np.zeros(a.shape) if h is None else h for a, h in zip(self.arrays, tangents, strict=True)]
        return self.problem.system(filled)

    def solution(self):
        values = dict(zip("xyt", self.outputs, strict=True))
        return Solution(self.outputs, values, self.outputs[2], self.info, self.z)

    def vjp(self, cotangents):
        w = self._solve(self._gather(cotangents), transpose=True)
        return self._pull(-w[..., :, None] * self._z[..., None, :], w)

    def _tangent(self, tangents):
        dK, dr = self._push(tangents)
        return dK, self._solve(dr - (dK @ self._z[..., None])[..., 0])

    def jvp(self, tangents):
        return self.problem.read(self._tangent(tangents)[1])

    def hvp(self, cotangents, tangents):
        w = self._solve(self._gather(cotangents), transpose=True)
        dK, dz = self._tangent(tangents)
        u = self._solve((np.swapaxes(dK, -1, -2) @ w[..., None])[..., 0], transpose=True)
        return self._pull(u[..., :, None] * self._z[..., None, :] - w[..., :, None] * dz[..., None, :], -u)

    def second(self, first, other):
        (K1, z1), (K2, z2) = self._tangent(first), self._tangent(other)
        return self.problem.read(self._solve(-(K1 @ z2[..., None] + K2 @ z1[..., None])[..., 0]))


class FakeProblem:
    """n unknowns and m equalities; instances whose b[0] is above 1e6 fail."""

    def __init__(self, n=3, m=2, on_error="raise", tag=""):
        self.n, self.m, self.on_error = n, m, on_error
        self.parameters = (Spec("P", (n, n)), Spec("q", (n,)), Spec("A", (m, n)), Spec("b", (m,)), Spec("s", ()))
        self.outputs = (Spec("x", (n,)), Spec("y", (m,)), Spec("t", ()))
        self.fingerprint = f"fake-{n}-{m}{tag}"
        self.zsize = n + m
        self.evaluations = self.restored = 0
        self.solver, self.options, self.program = "fake", Options(), None

    def describe(self):
        return f"5 parameters (P {self.n, self.n}, ...), outputs x ({self.n},)"

    def system(self, arrays):
        P, q, A, b, s = arrays
        lead = np.broadcast_shapes(*(a.shape[: a.ndim - len(p.shape)] for a, p in zip(arrays, self.parameters, strict=True)))
        K = np.zeros((*lead, self.zsize, self.zsize))
        K[..., : self.n, : self.n], K[..., self.n :, : self.n], K[..., : self.n, self.n :] = P, A, np.swapaxes(A, -1, -2)
        r = np.zeros((*lead, self.zsize))
        r[..., : self.n], r[..., self.n :] = -q, b + np.asarray(s)[..., None]
        return K, r

    def read(self, z):
        return z[..., : self.n], z[..., self.n :], z[..., : self.n].sum(-1)

    def arguments(self, args, kwargs):
        names = [p.name for p in self.parameters]
        if unknown := [k for k in kwargs if k not in names]:
            raise ShapeError(f"no parameter is called {unknown[0]!r}", mend=f"the parameters are {names}")
        values = list(args) + [kwargs[k] for k in names[len(args) :] if k in kwargs]
        if len(values) != len(names):
            raise ShapeError("wrong number of parameters", expected=str(len(names)), got=str(len(values)))
        return values

    def batch_shape(self, shapes):
        for shape, p in zip(shapes, self.parameters, strict=True):
            if tuple(shape[len(shape) - len(p.shape) :]) != p.shape:
                raise ShapeError("wrong shape", where=f"parameter {p.name!r}", expected=str(p.shape), got=str(tuple(shape)))
        return np.broadcast_shapes(*(s[: len(s) - len(p.shape)] for s, p in zip(shapes, self.parameters, strict=True)))

    def evaluate(self, arrays, *, warm_start=None, options=None):
        arrays = [np.asarray(a, dtype=float) for a in arrays]
        self.batch_shape([a.shape for a in arrays])
        self.evaluations += 1
        K, r = self.system(arrays)
        failed = r[..., self.n] > 1e6
        z = np.linalg.solve(np.where(failed[..., None, None], np.eye(self.zsize), K), r[..., None])[..., 0]
        z[failed] = np.nan
        if failed.any() and self.on_error == "raise":
            raise SolveError("an instance failed", indices=tuple(map(tuple, np.argwhere(failed))))
        return FakeEvaluation(self, arrays, z)

    def restore(self, arrays, z, options=None):
        self.restored += 1
        return FakeEvaluation(self, [np.asarray(a, dtype=float) for a in arrays], z)


def closed_form(P, q, A, b, s):
    """The outputs of `FakeProblem` in torch operations: what every transform is compared with."""
    n, m = q.shape[-1], b.shape[-1]
    batch = torch.broadcast_shapes(P.shape[:-2], q.shape[:-1], A.shape[:-2], b.shape[:-1], s.shape)
    A = A.expand(*batch, m, n)
    K = torch.cat([torch.cat([P.expand(*batch, n, n), A.mT], -1), torch.cat([A, P.new_zeros(*batch, m, m)], -1)], -2)
    r = torch.cat([(-q).expand(*batch, n), (b + s[..., None]).expand(*batch, m)], -1)
    z = (torch.linalg.inv(K) @ r[..., None])[..., 0]  # torch.linalg.solve has wrong tangents in nested jacfwd (torch 2.13)
    return z[..., :n], z[..., n:], z[..., :n].sum(-1)


def data(*batch, seed=0, grad=False, n=3, m=2):
    """Well-conditioned parameters of `FakeProblem`, all of batch shape `batch`."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn((*batch, *shape), dtype=torch.float64, generator=g)

    M = draw(n, n)
    tensors = [M @ M.mT + 2 * torch.eye(n, dtype=torch.float64), draw(n), 0.3 * draw(m, n), draw(m), draw()]
    tensors[2][..., :m] += torch.eye(m, dtype=torch.float64)
    return [t.requires_grad_(grad) for t in tensors]


def difference(ours, theirs):
    """Largest relative difference of two trees of tensors with equal shapes."""
    a, b = ([t.detach() for t in tree_leaves(tree)] for tree in (ours, theirs))
    assert [tuple(x.shape) for x in a] == [tuple(x.shape) for x in b]
    return max((float((x - y).abs().max()) / (1 + float(y.abs().max())) for x, y in zip(a, b, strict=True) if x.numel()), default=0.0)
