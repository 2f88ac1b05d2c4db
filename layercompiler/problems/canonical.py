"""All use of CVXPY's internals: canonicalise a DPP problem once, and expose its tensors and its inversion.

Every other module sees numpy and scipy only. `CHECKED_CVXPY` lists the versions whose internals the contract tests ran on.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.constraints import ExpCone, NonNeg, PowCone3D, PowConeND, SvecPSD, Zero
from cvxpy.constraints.second_order import SOC
from cvxpy.reductions.cvx_attr2constr import recover_value_for_leaf
from cvxpy.reductions.dgp2dcp.dgp2dcp import Dgp2Dcp
from cvxpy.reductions.solvers.conic_solvers.clarabel_conif import CLARABEL
from cvxpy.utilities.psd_utils import TriangleKind

from layercompiler.cones import PSD, Exponential, Nonnegative, Power, Product, SecondOrder
from layercompiler.cones import Zero as ZeroCone
from layercompiler.problems.quadratic import settle

CHECKED_CVXPY = ("1.9.3",)


class _Standard(CLARABEL):
    """A CVXPY 'solver' that stops at the parametrised cone program, in the package's own standard form."""

    PSD_TRIANGLE_KIND = TriangleKind.LOWER
    SUPPORTED_CONSTRAINTS = [kind for kind in CLARABEL.SUPPORTED_CONSTRAINTS if kind is not PowConeND]  # noqa: RUF012

    def name(self) -> str:
        return "LAYERCOMPILER"

    def apply(self, problem: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        problem, data, inverse = self._prepare_data_and_inv_data(problem)
        inverse["offset"] = 0.0
        return data, inverse


class _MixedInteger(_Standard):
    """The same for problems with boolean and integer variables, which are kept as they are."""

    MIP_CAPABLE = True
    MI_SUPPORTED_CONSTRAINTS = _Standard.SUPPORTED_CONSTRAINTS


@dataclass(frozen=True)
class Canonical:
    """A canonicalised problem: tensors over [parameters; 1] and the chain that leads back.

    Attributes:
        n: Number of cone-program variables.
        P: Rows (one per entry of the upper triangle) by parameters + 1; pattern in `P_rows`, `P_cols`.
        q: (n, p + 1).
        d: (1, p + 1).
        A: Rows (one per entry) by p + 1, sign as in Ax + s = b; pattern in `A_rows`, `A_cols`, sorted by row.
        b: (m, p + 1).
        cones: The product cone.
    """

    n: int
    P: sp.csr_array
    P_rows: np.ndarray
    P_cols: np.ndarray
    q: sp.csr_array
    d: sp.csr_array
    A: sp.csr_array
    A_rows: np.ndarray
    A_cols: np.ndarray
    b: sp.csr_array
    cones: Product
    chain: Any
    inverse_data: Any
    tensors: Any

    @property
    def is_dgp(self) -> bool:
        """True where the problem went through the log transform of geometric programs."""
        return any(isinstance(r, Dgp2Dcp) for r in self.chain.reductions)

    @property
    def boolean(self) -> np.ndarray:
        """(n,) bool, the variables that are 0 or 1."""
        return self._marked(self.tensors.x.boolean_idx)

    @property
    def integer(self) -> np.ndarray:
        """(n,) bool, the variables that are whole numbers."""
        return self._marked(self.tensors.x.integer_idx)

    def _marked(self, indices: Any) -> np.ndarray:
        mask = np.zeros(self.n, bool)
        mask[[int(i[0]) for i in indices]] = True
        return mask

    def parameter_columns(self, parameter: cp.Parameter) -> list[tuple[slice, np.ndarray, bool]]:
        """Column ranges that hold a parameter: (columns, index, log).

        `index` has the parameter's shape and says which entry of the column range each scalar is lowered to (-1: none);
        symmetric, diagonal and sparse parameters are lowered to fewer scalars.
        """
        found = []
        logged = {p.id for r in self.chain.reductions if isinstance(r, Dgp2Dcp) for p in r.canon_methods._parameters}
        lowered = self.chain.compose_param_id_map().get(parameter.id, [])
        for final in dict.fromkeys([*lowered, parameter.id]):
            if final in self.tensors.param_id_to_col:
                start = self.tensors.param_id_to_col[final]
                size = self.tensors.param_id_to_size[final]
                log = final != parameter.id and parameter.id in logged
                found.append((slice(start, start + size), _leaf_index(parameter, size), log))
        return found

    def variable_index(self, variable: cp.Variable) -> np.ndarray | None:
        """For each entry of a variable the column of x that holds it (-1: structurally zero), or None if it is not there."""
        finals = self.chain.compose_var_id_map().get(variable.id, [variable.id])
        starts = [self.tensors.var_id_to_col[i] for i in finals if i in self.tensors.var_id_to_col]
        if not starts:
            return None
        size = next(v.size for v in self.tensors.variables if self.tensors.var_id_to_col[v.id] == starts[0] and v.id in finals)
        index = _leaf_index(variable, size)
        return np.where(index >= 0, index + starts[0], -1)

    def dual_map(self, constraint: Any, position: int) -> sp.csr_array:
        """The linear map from y to a dual variable (C order), found by sending probes through CVXPY's own inversion."""
        variable = constraint.dual_variables[position]
        kept = [v.value for v in constraint.dual_variables]

        def image(y: np.ndarray) -> np.ndarray:
            raw = SimpleNamespace(x=np.zeros(self.n), z=y, obj_val=0.0, status="Solved", solve_time=0.0, iterations=0)
            solution = raw
            for reduction, inverse in reversed(list(zip(self.chain.reductions, self.inverse_data, strict=True))):
                solution = reduction.invert(solution, inverse)
            constraint.save_dual_value(solution.dual_vars[constraint.id])
            return np.asarray(variable.value, dtype=float).ravel()

        try:
            return _probe(image, self.cones.m)
        finally:
            for v, value in zip(constraint.dual_variables, kept, strict=True):
                v._value = value


def canonicalize(problem: cp.Problem, gp: bool, whole: bool = False) -> Canonical:
    """Canonicalise a DPP problem once, without parameter values, keeping a quadratic objective as P.

    Args:
        problem: A DPP (or, with `gp`, DGP and DPP) problem without complex variables, and without integer ones unless `whole`.
        gp: Whether to apply the log transform of geometric programs.
        whole: Whether boolean and integer variables are allowed; `Canonical.boolean` and `Canonical.integer` say which they are.

    Returns:
        The tensors of the standard form of `layercompiler.programs.cone`.
    """
    settled = settle(problem)
    fresh = cp.Problem(settled.objective, settled.constraints)
    standard = _MixedInteger() if whole else _Standard()
    data, chain, inverse = fresh.get_problem_data(standard, gp=gp, enforce_dpp=True, solver_opts={"use_quad_obj": True})
    tensors = data["param_prob"]
    n = tensors.x.size
    width = tensors.q.shape[1]
    q = sp.csr_array(tensors.q.tocsr())
    m = tensors.constr_size
    if m:
        tensors.reduced_A.cache(True)
        indices, indptr, _ = tensors.reduced_A.problem_data_index
        entries = sp.csr_array(tensors.reduced_A.reduced_mat.tocsr())
    else:
        indices, indptr, entries = np.zeros(0, int), np.zeros(n + 2, int), sp.csr_array((0, width))
    split, end = indptr[-2], indptr[-1]
    columns = np.repeat(np.arange(n), np.diff(indptr[:-1]))
    order = np.lexsort((columns, indices[:split]))
    b_rows = indices[split:end]
    scatter = sp.csr_array((np.ones(len(b_rows)), (b_rows, np.arange(len(b_rows)))), shape=(m, len(b_rows)))
    if tensors.P is not None:
        tensors.reduced_P.cache(True)
        P_indices, P_indptr, _ = tensors.reduced_P.problem_data_index
        P_columns = np.repeat(np.arange(n), np.diff(P_indptr[: n + 1]))
        upper = P_indices[: len(P_columns)] <= P_columns
        P = sp.csr_array(tensors.reduced_P.reduced_mat.tocsr())[: len(P_columns)][upper]
        P_rows, P_cols = P_indices[: len(P_columns)][upper], P_columns[upper]
    else:
        P, P_rows, P_cols = sp.csr_array((0, width)), np.zeros(0, int), np.zeros(0, int)
    return Canonical(
        n=n,
        P=P,
        P_rows=P_rows.astype(np.intp),
        P_cols=P_cols.astype(np.intp),
        q=q[:n],
        d=q[n:],
        A=sp.csr_array(-entries[:split][order]),
        A_rows=indices[:split][order].astype(np.intp),
        A_cols=columns[order].astype(np.intp),
        b=sp.csr_array(scatter @ entries[split:end]),
        cones=_cones(tensors),
        chain=chain,
        inverse_data=_inverse_data(inverse),
        tensors=tensors,
    )


def _cones(tensors: Any) -> Product:
    dims = tensors.cone_dims
    known = (Zero, NonNeg, SOC, SvecPSD, ExpCone, PowCone3D)
    for kind, constraints in tensors.constr_map.items():
        if constraints and kind not in known:  # a new CVXPY cone would otherwise be dropped without a word
            raise NotImplementedError(f"cone constraint {kind.__name__} of this CVXPY version is unknown")
    blocks: list[tuple[Any, int]] = []
    blocks += [(ZeroCone(), dims.zero)] if dims.zero else []
    blocks += [(Nonnegative(), dims.nonneg)] if dims.nonneg else []
    blocks += _runs(SecondOrder, dims.soc)
    blocks += _runs(PSD, dims.psd)
    blocks += [(Exponential(), dims.exp)] if dims.exp else []
    blocks += [(Power(tuple(float(a) for a in dims.p3d)), len(dims.p3d))] if dims.p3d else []
    return Product(tuple(blocks))


def _runs(kind: Any, sizes: list[int]) -> list[tuple[Any, int]]:
    """Group consecutive equal sizes, so that equal cones are handled at once."""
    groups: list[list[int]] = []
    for size in sizes:
        if groups and groups[-1][0] == size:
            groups[-1][1] += 1
        else:
            groups.append([int(size), 1])
    return [(kind(size), count) for size, count in groups]


def _inverse_data(inverse: list[Any]) -> list[Any]:
    last = inverse[-1]
    return [*inverse[:-1], getattr(last, "inverse_data", last)]


def _leaf_index(leaf: Any, size: int) -> np.ndarray:
    """Which lowered scalar each entry of a leaf reads; -1 for structural zeros. Shape of the leaf."""
    marks = np.arange(1.0, size + 1)
    if leaf._has_dim_reducing_attr or size != leaf.size:
        marked = recover_value_for_leaf(leaf, marks, project=False)
        marked = marked.toarray() if sp.issparse(marked) else np.asarray(marked)
    else:
        marked = marks.reshape(leaf.shape, order="F")
    return np.rint(marked).astype(np.intp) - 1


def _probe(image: Any, size: int) -> sp.csr_array:
    """The sparse matrix of a linear map, from two coded probes when every output reads one entry, else from the basis."""
    rng = np.random.default_rng(0)
    r = rng.uniform(1.0, 2.0, size)
    first, coded = image(r), image(r * np.arange(1, size + 1))
    with np.errstate(all="ignore"):
        position = np.rint(np.where(first != 0, coded / first, 0)).astype(int)
    rows = np.flatnonzero((position >= 1) & (position <= size))
    cols = position[rows] - 1
    gather = sp.csr_array((first[rows] / r[cols], (rows, cols)), shape=(len(first), size))
    check = rng.standard_normal(size)
    if np.allclose(gather @ check, image(check), rtol=1e-12, atol=1e-12):
        return gather
    return sp.csr_array(np.stack([image(e) for e in np.eye(size)], axis=1))
