"""Theseus and optimistix on the problems of `least_squares_problems`, behind one signature.

Each builds `forward() -> value` and `backward(value) -> gradients`; everything that can be made once is made outside of the clock.
"""

from __future__ import annotations

import numpy as np
import torch


class TheseusGraph:
    """Theseus on a pose graph; weights are learned, one diagonal per edge."""

    def __init__(self, graph, solver="cholmod", iterations=20, mode="implicit"):
        import theseus as th

        self.mode = th.BackwardMode[mode.upper()]
        planar = graph.group == "SE2"
        kind = th.SE2 if planar else th.SE3
        self.planar, batch = planar, len(graph.start)
        objective = th.Objective(dtype=torch.float64)
        poses = [kind(tensor=self.numbers(graph.start[:, i]), name=f"x{i}", disable_checks=True) for i in range(graph.start.shape[1])]
        self.inputs = {p.name: p.tensor.clone() for p in poses}
        weights = []
        for e, (i, j) in enumerate(graph.edges):
            diagonal = th.Vector(tensor=torch.tensor(graph.weights[:, e]), name=f"w{e}")
            weights.append(diagonal.tensor)
            weight = th.DiagonalCostWeight(diagonal, name=f"W{e}")
            measured = kind(tensor=self.numbers(graph.measured[:, e]), name=f"z{e}", disable_checks=True)
            self.inputs[f"z{e}"] = measured.tensor.clone()
            objective.add(th.Between(poses[i], poses[j], measured, weight, name=f"e{e}"))
        anchor = kind(tensor=self.numbers(graph.truth[:, 0]), name="anchor", disable_checks=True)
        objective.add(th.Difference(poses[0], anchor, th.ScaleCostWeight(torch.ones(1, 1, dtype=torch.float64)), name="prior"))
        linear = th.CholmodSparseSolver if solver == "cholmod" else th.CholeskyDenseSolver
        optimizer = th.GaussNewton(objective, linear_solver_cls=linear, max_iterations=iterations, vectorize=True)
        self.layer = th.TheseusLayer(optimizer)
        self.weights = [w.clone().requires_grad_() for w in weights]
        self.poses = poses
        self.cotangent = torch.tensor(np.random.default_rng(5).standard_normal((batch, len(poses), 2 if planar else 3)))

    def numbers(self, matrices):
        T = torch.tensor(np.ascontiguousarray(matrices))
        return torch.stack([T[:, 0, 2], T[:, 1, 2], T[:, 0, 0], T[:, 1, 0]], dim=1) if self.planar else T[:, :3, :].contiguous()

    def forward(self):
        inputs = {**self.inputs, **{f"w{e}": w for e, w in enumerate(self.weights)}}
        values, self.info = self.layer.forward(inputs, optimizer_kwargs={"backward_mode": self.mode})
        return torch.stack([values[p.name] for p in self.poses], dim=1)

    def positions(self, value):
        return value[..., :2] if self.planar else value[..., 3]

    def backward(self, value):
        loss = (self.positions(value) * self.cotangent).sum()
        return torch.stack(torch.autograd.grad(loss, self.weights), dim=1)


class TheseusScene:
    """Theseus on a bundle adjustment with automatic derivatives, sparse Cholesky; gradients by the pixels."""

    def __init__(self, scene, iterations=20, solver="cholmod"):
        import theseus as th

        def tensor(x):
            return torch.tensor(np.ascontiguousarray(x), dtype=torch.float64)[None]

        cameras = [th.SE3(tensor=tensor(T[:3]), name=f"c{i}", disable_checks=True) for i, T in enumerate(scene.start_cameras)]
        points = [th.Point3(tensor=tensor(p), name=f"p{i}") for i, p in enumerate(scene.start_points)]
        one = th.ScaleCostWeight(torch.ones(1, 1, dtype=torch.float64))
        objective = th.Objective(dtype=torch.float64)

        def error(optim_vars, aux_vars):
            camera, point = optim_vars
            local = camera.transform_from(point).tensor
            return local[:, :2] / local[:, 2:] - aux_vars[0].tensor

        def fixed(optim_vars, aux_vars):
            local = aux_vars[1].transform_from(optim_vars[0]).tensor
            return local[:, :2] / local[:, 2:] - aux_vars[0].tensor

        self.inputs, self.pixels = {}, []
        for k, ((i, j), uv) in enumerate(zip(scene.seen, scene.pixels, strict=True)):
            seen = th.Point2(tensor=tensor(uv), name=f"u{k}")
            self.pixels.append(seen.tensor.clone().requires_grad_())
            known = i < scene.known
            variables, extra = ([points[j]], [seen, cameras[i]]) if known else ([cameras[i], points[j]], [seen])
            objective.add(th.AutoDiffCostFunction(variables, fixed if known else error, 2, cost_weight=one, aux_vars=extra, name=f"r{k}"))
        linear = th.CholmodSparseSolver if solver == "cholmod" else th.CholeskyDenseSolver
        self.layer = th.TheseusLayer(th.GaussNewton(objective, linear_solver_cls=linear, max_iterations=iterations, vectorize=True))
        self.start = {v.name: v.tensor.clone() for v in [*cameras, *points]}
        self.names = [p.name for p in points]

    def forward(self):
        inputs = {**self.start, **{f"u{k}": u for k, u in enumerate(self.pixels)}}
        values, self.info = self.layer.forward(inputs, optimizer_kwargs={"backward_mode": "implicit"})
        return torch.stack([values[n] for n in self.names], dim=1)

    def positions(self, value):
        return value

    def backward(self, value):
        return torch.stack(torch.autograd.grad((value * value).sum(), self.pixels), dim=1)


class TheseusCurve:
    """Theseus on curve fits, Levenberg-Marquardt; gradients by y."""

    def __init__(self, curve, damping=0.001, adaptive=True, ellipsoidal=False, iterations=20, method="lm"):
        import theseus as th

        t = th.Variable(torch.tensor(curve.t)[None], name="t")
        x = th.Vector(tensor=torch.tensor(curve.start), name="x")
        y = th.Vector(tensor=torch.tensor(curve.y), name="y")

        def error(optim_vars, aux_vars):
            (x,), (t, y) = optim_vars, aux_vars
            return x.tensor[:, :1] * torch.exp(-x.tensor[:, 1:2] * t.tensor) + x.tensor[:, 2:] - y.tensor

        objective = th.Objective(dtype=torch.float64)
        one = th.ScaleCostWeight(torch.ones(1, 1, dtype=torch.float64))
        objective.add(th.AutoDiffCostFunction([x], error, len(curve.t), cost_weight=one, aux_vars=[t, y], name="fit"))
        kind = th.LevenbergMarquardt if method == "lm" else th.GaussNewton
        self.layer = th.TheseusLayer(kind(objective, max_iterations=iterations, vectorize=True))
        self.start, self.y = torch.tensor(curve.start), torch.tensor(curve.y, requires_grad=True)
        self.options = {"backward_mode": th.BackwardMode.IMPLICIT}
        if method == "lm":
            self.options |= {"damping": damping, "adaptive_damping": adaptive, "ellipsoidal_damping": ellipsoidal}

    def forward(self):
        values, self.info = self.layer.forward({"x": self.start, "y": self.y}, optimizer_kwargs=self.options)
        return values["x"]

    def backward(self, value):
        return torch.autograd.grad((value * value).sum(), self.y)[0]


class OptimistixCurve:
    """optimistix on curve fits, under jit and vmap; gradients by y, by its implicit adjoint."""

    def __init__(self, curve, method="LevenbergMarquardt", tolerance=1e-8):
        import jax
        import optimistix

        jax.config.update("jax_enable_x64", True)
        t = jax.numpy.asarray(curve.t)

        def residual(x, y):
            return x[0] * jax.numpy.exp(-x[1] * t) + x[2] - y

        solver = getattr(optimistix, method)(rtol=tolerance, atol=tolerance)

        def one(y, start):
            return optimistix.least_squares(residual, solver, start, args=y, max_steps=256, throw=False).value

        many = jax.vmap(one)
        self.y, self.start = jax.numpy.asarray(curve.y), jax.numpy.asarray(curve.start)
        self.solve = jax.jit(many)
        self.both = jax.jit(jax.value_and_grad(lambda y, start: (many(y, start) ** 2).sum()))

    def forward(self):
        return self.solve(self.y, self.start).block_until_ready()

    def whole(self):
        """Forward and backward in one compiled call, as jax users do."""
        return self.both(self.y, self.start)[1].block_until_ready()
