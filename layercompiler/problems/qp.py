"""Quadratic programs written as matrices: minimise 1/2 x'Qx + p'x subject to Gx <= h, Ax = b."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from layercompiler.cones import Nonnegative, Product, Zero
from layercompiler.errors import BuildError, ShapeError
from layercompiler.programs.affine import AffineMap, Block, Channel
from layercompiler.programs.cone import ConeProgram, OutputSpec, ParameterSpec, Structure

NAMES = ("Q", "p", "G", "h", "A", "b", "l")

_FORMS = "QP(2, 3) has 2 variables and 3 inequalities; QP(Q, p, G, h) takes arrays, None for what is absent"


class QP:
    """A quadratic program given by its matrices, without CVXPY.

        minimise 1/2 x'Qx + p'x   subject to   Gx <= h (duals z >= 0),  Ax = b (duals y),   Qx + p + G'z + A'y = 0

    `QP(n, inequalities, equalities)` gives the sizes: all six are parameters. `QP(Q, p, G, h, A, b)` gives arrays, of which those named
    in `parameters` of `layercompiler.compile` (all, by default) become arguments of the layer and the others stay as they are; a
    matrix that is None is absent. The symmetric part of Q counts, and it must be positive semidefinite (zero for a linear program).

    With `l`, or `two_sided=True`, inequalities are l <= Gx <= h, and a dual z is positive at h and negative at l. They are solved as
    two rows each.

    Outputs are asked for by name: "x", "y" (p,), "z" (m,), and "value".

    Args:
        *given: Sizes, or arrays of shapes (n, n), (n,), (m, n), (m,), (p, n), (p,), (m,) in the order Q, p, G, h, A, b, l.
        two_sided: With sizes: whether there is an l.
        **named: Arrays by name.

    Example:
        >>> import layercompiler as lc, numpy as np
        >>> layer = lc.export(lc.QP(2, 2), "numpy", variables=["x", "z"])
        >>> x, z = layer(np.eye(2), np.array([-2.0, 0.0]), np.eye(2), np.array([1.0, 5.0]))
        >>> x.round(9) + 0.0, z.round(9) + 0.0
        (array([1., 0.]), array([1., 0.]))

    Raises:
        ShapeError: The arrays do not fit each other.
    """

    def __init__(self, *given: Any, two_sided: bool = False, **named: Any) -> None:
        if given and not named and all(isinstance(g, (int, np.integer)) for g in given):
            sizes = [int(g) for g in given] + [0, 0]
            if len(given) > 3 or sizes[0] < 1 or min(sizes) < 0:
                raise BuildError("wrong sizes of a QP", expected="QP(n, inequalities, equalities)", got=f"QP{given}", mend=_FORMS)
            self.n, self.inequalities, self.equalities = sizes[:3]
            self.values: dict[str, np.ndarray] = {}
            self.two_sided = two_sided
            return
        listed = dict(zip(NAMES, given, strict=False))
        if len(given) > len(NAMES) or not set(named) <= set(NAMES) - set(listed):
            got = f"{len(given)} arguments" + (f" and {sorted(named)}" if named else "")
            raise BuildError("a QP is given by its sizes or by its arrays", expected="QP(Q, p, G, h, A, b, l)", got=got, mend=_FORMS)
        arrays = {k: np.array(a, dtype=float) for k, a in (listed | named).items() if a is not None}
        self.two_sided = "l" in arrays
        if "Q" not in arrays and "p" not in arrays:
            raise BuildError("a QP needs Q or p", expected="QP(Q, p, ...)", got=f"QP of {sorted(arrays)}", mend=_FORMS)
        self.n = int(arrays["p" if "p" in arrays else "Q"].shape[-1])
        self.inequalities, self.equalities = (len(arrays[k]) if k in arrays else 0 for k in ("G", "A"))
        if self.two_sided and "h" not in arrays:
            raise BuildError("l and h come together", got=f"QP of {sorted(arrays)}", mend="write -Gx <= -l for rows without an upper bound")
        for matrix, vector in (("G", "h"), ("A", "b")):
            if (matrix in arrays) != (vector in arrays):
                raise BuildError(f"{matrix} and {vector} come together", got=f"QP of {sorted(arrays)}", mend=_FORMS)
        for name, shape in self.shapes.items():
            a = arrays.setdefault(name, np.zeros(shape))
            if a.shape != shape or not np.isfinite(a).all():
                raise ShapeError(
                    f"{name} of the QP does not fit", where=name, expected=f"finite numbers of shape {shape}", got=f"{a.shape}"
                )
        self.values = arrays

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, of what is there."""
        n, m, p = self.n, self.inequalities, self.equalities
        every = {"Q": (n, n), "p": (n,), "G": (m, n), "h": (m,), "A": (p, n), "b": (p,)} | ({"l": (m,)} if self.two_sided else {})
        return {k: s for k, s in every.items() if s[0]}

    def __repr__(self) -> str:
        sides = ", two_sided=True" if self.two_sided else ""
        return f"QP(n={self.n}, inequalities={self.inequalities}, equalities={self.equalities}{sides})"


def compile_qp(qp: QP, parameters: Sequence[str] | None, variables: Sequence[str] | None) -> ConeProgram:
    """The cone program of a QP.

    Raises:
        BuildError: A name is unknown or given twice, or a matrix that is not a parameter has no value.
    """
    shapes = qp.shapes
    names = _named(parameters if parameters is not None else list(shapes), shapes, "parameter")
    outputs = _named(variables if variables is not None else ["x"], {"x": 0, "y": 0, "z": 0, "value": 0}, "output")
    missing = [k for k in shapes if k not in names and k not in qp.values]
    if missing:
        raise BuildError(f"{missing} are neither parameters nor given as arrays", mend="write QP(Q, p, ...), or name them in parameters")
    channel = {name: i for i, name in enumerate(names)}
    n, m, p = qp.n, qp.inequalities, qp.equalities
    i, j = np.triu_indices(n)
    order = np.lexsort((i, j))
    i, j = i[order], j[order]
    Q = qp.values.get("Q", np.zeros((n, n)))
    if "Q" not in channel:
        least = float(np.linalg.eigvalsh(Q + Q.T)[0]) / 2
        if least < -1e-9 * np.abs(Q).max():
            raise BuildError("Q of the QP is not positive semidefinite", where="Q", expected="no negative eigenvalue", got=f"{least:.3g}")
        keep = (Q[i, j] + Q[j, i]) != 0
        i, j = i[keep], j[keep]
    off = np.flatnonzero(i != j)
    entries = np.concatenate([np.arange(len(i)), off])
    half = np.where(i == j, 1.0, 0.5)
    cols, coefs = np.concatenate([i * n + j, j[off] * n + i[off]]), np.concatenate([half, half[off]])
    Q_block = Block(channel.get("Q", 0), entries, cols, coefs, n * n)
    P = AffineMap(np.zeros(len(i)), (Q_block,)) if "Q" in channel else AffineMap(0.5 * (Q[i, j] + Q[j, i]), ())
    below = [("G", m * n, -1.0)] if qp.two_sided else []
    stacked = _stack(qp, channel, [("A", p * n, 1.0), ("G", m * n, 1.0), *below])
    b = _stack(qp, channel, [("b", p, 1.0), ("h", m, 1.0), *([("l", m, -1.0)] if qp.two_sided else [])])
    q = _stack(qp, channel, [("p", n, 1.0)])
    rows = 2 * m if qp.two_sided else m
    blocks = [(kind, count) for kind, count in ((Zero(), p), (Nonnegative(), rows)) if count]
    structure = Structure(
        n=n,
        P_rows=i.astype(np.intp),
        P_cols=j.astype(np.intp),
        A_rows=np.repeat(np.arange(p + rows), n),
        A_cols=np.tile(np.arange(n), p + rows),
        cones=Product(tuple(blocks)),
    )
    return ConeProgram(
        structure=structure,
        P=P,
        q=q,
        d=AffineMap(np.zeros(1), ()),
        A=stacked,
        b=b,
        parameters=tuple(ParameterSpec(k, shapes[k]) for k in names),
        channels=tuple(Channel(c, int(np.prod(shapes[k]))) for c, k in enumerate(names)),
        outputs=tuple(_output(k, qp) for k in outputs),
        value=_output("value", qp),
        kind="two-sided QP" if qp.two_sided else "QP",
    )


def _named(names: Sequence[Any], known: dict[str, Any], what: str) -> list[str]:
    out = [str(k) for k in names]
    if not set(out) <= set(known) or (what == "parameter" and len(set(out)) < len(out)):
        mend = (
            "x is the solution, y and z are the duals of the equalities and of the inequalities"
            if what == "output"
            else "list the arrays that change from call to call"
        )
        raise BuildError(f"unknown {what} of a QP", expected=f"some of {list(known)}, each once", got=f"{out}", mend=mend)
    return out


def _stack(qp: QP, channel: dict[str, int], parts: Sequence[tuple[str, int, float]]) -> AffineMap:
    """The numbers of parts (name, size, factor) one after the other, each a parameter or constant."""
    constant, blocks, at = np.zeros(sum(size for _, size, _ in parts)), [], 0
    for name, size, factor in parts:
        if name in channel:
            blocks.append(Block(channel[name], at + np.arange(size), np.arange(size), np.full(size, factor), size))
        elif size:
            constant[at : at + size] = factor * qp.values[name].ravel()
        at += size
    return AffineMap(constant, tuple(blocks))


def _output(name: str, qp: QP) -> OutputSpec:
    if name == "value":
        return OutputSpec("value", (), "value")
    p, m = qp.equalities, qp.inequalities
    size, first = {"x": (qp.n, 0), "y": (p, 0), "z": (m, p)}[name]
    rows, cols, coefs = np.arange(size), first + np.arange(size), np.ones(size)
    if name == "z" and qp.two_sided:
        rows, cols, coefs = np.tile(rows, 2), np.concatenate([cols, cols + m]), np.concatenate([coefs, -coefs])
    return OutputSpec(name, (size,), "primal" if name == "x" else "dual", rows, cols, coefs)
