"""What the compiler did, pass by pass, as text."""

from __future__ import annotations

import numpy as np

from layercompiler.plan.parts import Parts
from layercompiler.programs.least_squares import LeastSquaresProgram


def report(compiled: Parts) -> str:
    """The passes from the user's problem to the plan, with sizes, and the choices with their reasons."""
    program, elimination, structure = compiled.program, compiled.elimination, compiled.structure
    full = elimination.full
    scalars = sum(p.size for p in program.parameters)
    cones = ", ".join(f"{count} x {cone.name}({cone.dim})" for cone, count in structure.cones.blocks) or "none"
    entering = sum(len(b.rows) for m in program.maps for b in m.blocks)
    lines = [
        f"problem       {program.kind}, {len(program.parameters)} parameters ({scalars} scalars), {len(program.outputs)} outputs",
        f"canonicalize  n={full.n}, m={full.m}, nnz(P)={len(full.P_rows)}, nnz(A)={len(full.A_rows)}, parameter entries {entering}",
        (
            f"presolve      {len(elimination.k)} defined variables substituted: n={structure.n}, m={structure.m}, "
            f"nnz(P)={len(structure.P_rows)}, nnz(A)={len(structure.A_rows)}"
            if elimination.active
            else "presolve      nothing to substitute"
        ),
        f"cones         {cones}",
        f"solver        {compiled.search.describe()}; then {', '.join(compiled.fallbacks)}",
        f"refinement    {compiled.refining}",
        f"derivative    symmetric system of order {compiled.map.order}, {compiled.map.describe}",
        f"on error      {compiled.on_error}; solved means relative residual <= {compiled.options.tolerance:g}",
    ]
    return "\n".join(lines)


def least_squares(program: LeastSquaresProgram) -> list[str]:
    """One line per variable and per block of residuals of a least-squares program."""
    lines = []
    for v in program.variables:
        kind = "" if v.manifold.name == "euclidean" else f" ({v.elements} of {v.manifold.name})"
        fixed = f", {int(v.fixed.sum())} of {v.elements} fixed" if v.fixed is not None and v.fixed.any() else ""
        bounds = " with bounds" if v.lower is not None or v.upper is not None else ""
        lines.append(f"variable      {v.name}: {v.dof} unknowns{kind}{fixed}{bounds}")
    for b in program.blocks:
        ends = [(program.variables[k], i) for k, i in zip(b.on, b.index, strict=True)]
        width = sum(v.dof if i is None else v.manifold.dof for v, i in ends)
        if b.sparsity is None:
            jacobian = "dense" if b.jacobian is None else "given"
        else:
            colors = int(np.max(b.sparsity.colors, initial=-1)) + 1 if b.sparsity.colors is not None else width
            jacobian = f"{len(b.sparsity.rows)} nonzeros, {colors} colours"
        loss, many = "squares" if b.robust is None else b.robust.name, "" if b.count is None else f"{b.count} x "
        lines.append(f"residuals     {many}{b.dim} rows ({loss}), Jacobian {b.dim} x {width}: {jacobian}")
    return lines
