"""The layers that are compared, behind one signature.

`build(case) -> layer` with `prepare` (makes the framework's tensors, outside of the clock), `forward` (with gradients on) and `backward`.
"""

from __future__ import annotations

import numpy as np
import torch

import layercompiler as lc


class Layer:
    """A torch layer: a function of tensors that returns a tuple of tensors."""

    def __init__(self, call):
        self.call = call

    def prepare(self, arrays):
        return [torch.tensor(a, requires_grad=True) for a in arrays]

    def forward(self, tensors):
        return self.call(*tensors)

    def backward(self, outputs, tensors, cotangents):
        return torch.autograd.grad(outputs, tensors, cotangents, retain_graph=True, allow_unused=True)

    def values(self, outputs):
        return [o.detach().numpy() for o in outputs]

    def slopes(self, gradients, tensors, directions):
        """<gradient, direction> for each direction; directions have the shape of the arguments."""
        found = [np.zeros(t.shape) if g is None else g.numpy() for g, t in zip(gradients, tensors, strict=True)]
        return [sum(float(np.sum(g * d)) for g, d in zip(found, direction, strict=True)) for direction in directions]


class _Empty(torch.autograd.Function):
    """Outputs that are there already, and gradients that nobody has written."""

    @staticmethod
    def forward(ctx, outputs, *tensors):
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx, *cotangents):
        return None, *(torch.empty_like(t) for t in ctx.saved_tensors)


class Floor(Layer):
    """What torch takes for the backward pass of any layer of these inputs and outputs: ours forward, nothing backward."""

    def forward(self, tensors):
        with torch.no_grad():
            outputs = self.call(*tensors)
        return _Empty.apply(outputs, *tensors)


def ours(case, solver="auto"):
    return Layer(lc.export(case.problem, "torch", parameters=case.parameters, variables=case.variables, solver=solver))


def with_engine(solver):
    """Our layer with a named engine."""
    return lambda case: ours(case, solver)


def cvxpylayers(**solver_args):
    """cvxpylayers with solver arguments; one job, as everything here."""

    def build(case):
        from cvxpylayers.torch import CvxpyLayer

        layer = CvxpyLayer(case.problem, parameters=case.parameters, variables=case.variables)
        arguments = {"n_jobs_forward": 1, "n_jobs_backward": 1, **solver_args}
        return Layer(lambda *tensors: layer(*tensors, solver_args=arguments))

    return build


class Moreau:
    """moreau's torch solver on the canonical data of the problem, quadratic objective and all cones.

    It is handed the data, not the parameters: the map from parameters to data and back is outside of the clock, in its favour. (Through
    cvxpylayers 1.2.0 with CVXPY 1.9.3 it drops plain bounds without a word.)
    """

    def __init__(self, case, solver):
        import moreau
        from moreau.torch import Solver

        from layercompiler.solvers.order import upper_order

        self.program = lc.compile(case.problem, parameters=case.parameters, variables=case.variables).program
        s = self.program.structure
        self.order = upper_order(s)
        self.rows = np.argsort(self.order)[s.A_rows]
        self.A_order = np.lexsort((s.A_cols, self.rows))
        P_rows, P_cols = np.r_[s.P_rows, s.P_cols[s.P_off]], np.r_[s.P_cols, s.P_rows[s.P_off]]
        self.P_order = np.lexsort((P_cols, P_rows))
        self.P_mirror = s.P_mirror[self.P_order]
        blocks = {}
        for cone, count in s.cones.blocks:
            blocks.setdefault(cone.name, []).append((cone, count))

        def total(name):
            return sum(count for _, count in blocks.get(name, []))

        cones = moreau.Cones(
            num_zero_cones=total("zero"),
            num_nonneg_cones=total("nonnegative"),
            so_cone_dims=[cone.dim for cone, count in blocks.get("second_order", []) for _ in range(count)],
            psd_dims=[cone.order for cone, count in blocks.get("psd", []) for _ in range(count)],
            num_exp_cones=total("exponential"),
        )

        def pointer(rows, size):
            return torch.tensor(np.r_[0, np.cumsum(np.bincount(rows, minlength=size))])

        self.make = lambda batch: Solver(
            s.n,
            s.m,
            pointer(P_rows, s.n),
            torch.tensor(P_cols[self.P_order]),
            pointer(self.rows, s.m),
            torch.tensor(s.A_cols[self.A_order]),
            cones=cones,
            settings=moreau.Settings(solver=solver, device="cpu", batch_size=batch, enable_grad=True),
        )
        self.solvers = {}

    def _data(self, arrays, batch):
        flat = [np.reshape(arrays[c.parameter], (batch, c.size)) for c in self.program.channels]
        data = self.program.bind(flat, batch)
        P, q, A, b = (np.broadcast_to(a, (batch, a.shape[1])) for a in (data.P, data.q, data.A, data.b))
        return P[:, self.P_mirror], A[:, self.A_order], q, b[:, self.order]

    def prepare(self, arrays):
        batch = len(arrays[0])
        if batch not in self.solvers:
            self.solvers[batch] = self.make(batch)
        self.arrays = arrays
        return [torch.tensor(np.ascontiguousarray(a), requires_grad=True) for a in self._data(arrays, batch)]

    def forward(self, tensors):
        return (self.solvers[len(tensors[0])].solve(*tensors).x,)

    def backward(self, outputs, tensors, cotangents):
        lifted = torch.zeros_like(outputs[0])
        for output, w in zip(self.program.outputs, cotangents, strict=True):
            output.spread(w.reshape(len(lifted), -1).numpy(), lifted.numpy())
        return torch.autograd.grad(outputs, tensors, (lifted,), retain_graph=True, allow_unused=True)

    def values(self, outputs):
        x = outputs[0].detach().numpy()
        return [o.pick(x).reshape(len(x), *o.shape) for o in self.program.outputs]

    def slopes(self, gradients, tensors, directions):
        batch = len(tensors[0])
        base = self._data(self.arrays, batch)
        slopes = []
        for direction in directions:
            moved = self._data([a + d for a, d in zip(self.arrays, direction, strict=True)], batch)  # affine: the difference is exact
            slopes.append(sum(float(np.sum(g.numpy() * (m - b))) for g, m, b in zip(gradients, moved, base, strict=True) if g is not None))
        return slopes


def moreau(solver):
    return lambda case: Moreau(case, solver)


OURS = "layercompiler"
LANES = "layercompiler, solver='lanes'"
CLARABEL = "layercompiler, solver='clarabel'"
DEFAULT = "cvxpylayers (default)"
PEERS = {
    OURS: ours,
    LANES: with_engine("lanes"),
    CLARABEL: with_engine("clarabel"),
    DEFAULT: cvxpylayers(),
    "cvxpylayers (Clarabel)": cvxpylayers(solve_method="Clarabel"),
    "cvxpylayers (SCS 1e-8)": cvxpylayers(eps_abs=1e-8, eps_rel=1e-8, max_iters=100_000),
    "moreau, direct (auto)": moreau("auto"),
    "moreau, direct (ipm)": moreau("ipm"),
}
