"""Projections, proximal operators and other small argmins as differentiable functions of torch, jax, TensorFlow and numpy arrays.

    from layercompiler import functions

    functions.project_simplex(x)          # (..., n): leading dimensions are the batch, parameters broadcast
    functions.prox_lasso(x, weight)

Each is written once against array functions, in such a way that the framework's own differentiation of it is the exact derivative: the
active set, or the solution, is found on constants, and tied to the inputs again by a formula that is right to second order. So grad, jvp,
jacobians, vmap and jit of every framework apply as to any other function. Where a function is not differentiable, its docstring says what
is returned.
"""

from layercompiler.functions.balls import (
    project_l1_ball,
    project_l1_sphere,
    project_l2_ball,
    project_l2_sphere,
    project_linf_ball,
    project_linf_sphere,
)
from layercompiler.functions.cones import project_psd, project_second_order
from layercompiler.functions.eigen import eigen, eigenspace
from layercompiler.functions.isotonic import isotonic
from layercompiler.functions.polyhedron import project_polyhedron
from layercompiler.functions.pooling import robust_pool
from layercompiler.functions.proximal import (
    prox_elastic_net,
    prox_group_lasso,
    prox_lasso,
    prox_none,
    prox_nonnegative_elastic_net,
    prox_nonnegative_lasso,
    prox_nonnegative_ridge,
    prox_nuclear,
    prox_ridge,
)
from layercompiler.functions.regression import least_squares
from layercompiler.functions.sets import project_affine, project_box, project_halfspace, project_hyperplane, project_nonnegative
from layercompiler.functions.simplex import project_box_section, project_simplex, sparsemax
from layercompiler.functions.transport import (
    optimal_transport,
    project_birkhoff,
    project_kl_birkhoff,
    project_kl_transport,
    project_transport,
)

__all__ = [
    "eigen",
    "eigenspace",
    "isotonic",
    "least_squares",
    "optimal_transport",
    "project_affine",
    "project_birkhoff",
    "project_box",
    "project_box_section",
    "project_halfspace",
    "project_hyperplane",
    "project_kl_birkhoff",
    "project_kl_transport",
    "project_l1_ball",
    "project_l1_sphere",
    "project_l2_ball",
    "project_l2_sphere",
    "project_linf_ball",
    "project_linf_sphere",
    "project_nonnegative",
    "project_polyhedron",
    "project_psd",
    "project_second_order",
    "project_simplex",
    "project_transport",
    "prox_elastic_net",
    "prox_group_lasso",
    "prox_lasso",
    "prox_none",
    "prox_nonnegative_elastic_net",
    "prox_nonnegative_lasso",
    "prox_nonnegative_ridge",
    "prox_nuclear",
    "prox_ridge",
    "robust_pool",
    "sparsemax",
]
