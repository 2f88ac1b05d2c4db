"""Quadratic programs written as matrices: minimise 1/2 x'Qx + p'x subject to Gx <= h, Ax = b."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from layercompiler.cones import Nonnegative, Product, Zero
from layercompiler.errors import BuildError, ShapeError
from layercompiler.programs.affine import AffineMap, Block, Channel
from layercompiler.programs.cone import ConeProgram, OutputSpec, ParameterSpec, Structure

NAMES = ("Q", "p", "G", "h", "A", "b")

_FORMS = "QP(2, 3) has 2 variables and 3 inequalities; QP(Q, p, G, h) takes arrays, None for what is absent"


class QP:
    """A quadratic program given by its matrices, without CVXPY.

        minimise 1/2 x'Qx + p'x   subject to   Gx <= h (duals z >= 0),  Ax = b (duals y),   Qx + p + G'z + A'y = 0

    `QP(n, inequalities, equalities)` gives the sizes: all six are parameters. `QP(Q, p, G, h, A, b)` gives arrays, of which those named
    in `parameters` of `layercompiler.compile` (all, by default) become arguments of the layer and the others stay as they are; a
    matrix that is None is absent. The symmetric part of Q counts, and it must be positive semidefinite (zero for a linear program).

    Outputs are asked for by name: "x", "y" (p,), "z" (m,), and "value".

    Args:
        *given: Sizes, or arrays of shapes (n, n), (n,), (m, n), (m,), (p, n), (p,).

    Example:
        >>> import layercompiler as lc, numpy as np
        >>> layer = lc.export(lc.QP(2, 2), "numpy", variables=["x", "z"])
        >>> x, z = layer(np.eye(2), np.array([-2.0, 0.0]), np.eye(2), np.array([1.0, 5.0]))
        >>> x.round(9) + 0.0, z.round(9) + 0.0
        (array([1., 0.]), array([1., 0.]))

    Raises:
        ShapeError: The arrays do not fit each other.
    """

    def __init__(self, *given: Any) -> None:
        if given and all(isinstance(g, (int, np.integer)) for g in given):
            sizes = [int(g) for g in given] + [0, 0]
            if len(given) > 3 or sizes[0] < 1 or min(sizes) < 0:
                raise BuildError("wrong sizes of a QP", expected="QP(n, inequalities, equalities)", got=f"QP{given}", mend=_FORMS)
            self.n, self.inequalities, self.equalities = sizes[:3]
            self.values: dict[str, np.ndarray] = {}
            return
        if not 2 <= len(given) <= 6:
            raise BuildError(
                "a QP is given by its sizes or by its arrays", expected="QP(Q, p, G, h, A, b)", got=f"{len(given)} arguments", mend=_FORMS
            )
        arrays = {k: np.array(a, dtype=float) for k, a in zip(NAMES, given, strict=False) if a is not None}
        if "Q" not in arrays and "p" not in arrays:
            raise BuildError("a QP needs Q or p", expected="QP(Q, p, ...)", got=f"QP of {sorted(arrays)}", mend=_FORMS)
        self.n = int(arrays["p" if "p" in arrays else "Q"].shape[-1])
        self.inequalities, self.equalities = (len(arrays[k]) if k in arrays else 0 for k in ("G", "A"))
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
        every = {"Q": (n, n), "p": (n,), "G": (m, n), "h": (m,), "A": (p, n), "b": (p,)}
        return {k: s for k, s in every.items() if s[0]}

    def __repr__(self) -> str:
        return f"QP(n={self.n}, inequalities={self.inequalities}, equalities={self.equalities})"


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
        keep = (Q[i, j] + Q[j, i]) != 0
        i, j = i[keep], j[keep]
    off = np.flatnonzero(i != j)
    rows = np.concatenate([np.arange(len(i)), off])
    half = np.where(i == j, 1.0, 0.5)
    Q_block = Block(channel.get("Q", 0), rows, np.concatenate([i * n + j, j[off] * n + i[off]]), np.concatenate([half, half[off]]), n * n)
    P = AffineMap(np.zeros(len(i)), (Q_block,)) if "Q" in channel else AffineMap(0.5 * (Q[i, j] + Q[j, i]), ())
    stacked = _stack(qp, channel, ("A", "G"), (p * n, m * n))
    b = _stack(qp, channel, ("b", "h"), (p, m))
    q = _stack(qp, channel, ("p",), (n,))
    blocks = [(kind, count) for kind, count in ((Zero(), p), (Nonnegative(), m)) if count]
    structure = Structure(
        n=n,
        P_rows=i.astype(np.intp),
        P_cols=j.astype(np.intp),
        A_rows=np.repeat(np.arange(p + m), n),
        A_cols=np.tile(np.arange(n), p + m),
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
        outputs=tuple(_output(k, n, p, m) for k in outputs),
        value=_output("value", n, p, m),
        kind="QP",
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


def _stack(qp: QP, channel: dict[str, int], names: tuple[str, ...], sizes: tuple[int, ...]) -> AffineMap:
    """The numbers of `names` one after the other, each a parameter or constant."""
    constant, blocks, at = np.zeros(sum(sizes)), [], 0
    for name, size in zip(names, sizes, strict=True):
        if name in channel:
            blocks.append(Block(channel[name], at + np.arange(size), np.arange(size), np.ones(size), size))
        elif size:
            constant[at : at + size] = qp.values[name].ravel()
        at += size
    return AffineMap(constant, tuple(blocks))


def _output(name: str, n: int, p: int, m: int) -> OutputSpec:
    if name == "value":
        return OutputSpec("value", (), "value")
    size, first = {"x": (n, 0), "y": (p, 0), "z": (m, p)}[name]
    index = np.arange(size)
    return OutputSpec(name, (size,), "primal" if name == "x" else "dual", index, first + index, np.ones(size))
