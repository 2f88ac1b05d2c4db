"""What the compiler did, pass by pass, as text."""

from __future__ import annotations

from layercompiler.plan.parts import Parts


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
        f"solver        {compiled.search.describe()}; then {', '.join(f'{e.name} at {tol:g}' for e, tol in compiled.search.attempts[1:])}",
        f"refinement    Newton on the residual map, at most {compiled.options.refinements} steps",
        f"derivative    symmetric system of order {compiled.map.order}, {compiled.map.describe}",
        f"on error      {compiled.on_error}; solved means relative residual <= {compiled.options.tolerance:g}",
    ]
    return "\n".join(lines)
