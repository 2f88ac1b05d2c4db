"""Save and load a program as one file: arrays and a JSON header in a .npz archive, no pickle, everything validated."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from layercompiler.cones import Product, cone_from_record, cone_record
from layercompiler.errors import StoreError
from layercompiler.programs.affine import AffineMap, Block, Channel
from layercompiler.programs.cone import MATRIX_KINDS, ConeProgram, OutputSpec, ParameterSpec, Structure

FORMAT = 1
LIMIT = 2 << 30  # bytes of an archive, uncompressed
LARGEST = LIMIT // 32  # scalars of all parameters, or of one output: what a file of a few bytes may make a loader allocate
_ORDER = ("zero", "nonnegative", "second_order", "psd", "exponential", "power")


def save(path: str | Path, program: ConeProgram | None, settings: dict[str, Any]) -> None:
    """Write a program and the settings it was compiled with.

    Args:
        path: File to write; ".npz" by custom.
        program: The program; None where the settings say everything.
        settings: JSON-able settings of the compiled problem.
    """
    if program is None:
        _write(path, {"format": FORMAT, "kind": "settings", "settings": settings}, {})
        return
    s = program.structure
    arrays: dict[str, Any] = {"P_rows": s.P_rows, "P_cols": s.P_cols, "A_rows": s.A_rows, "A_cols": s.A_cols}
    maps = {}
    for name, m in zip("PqdAb", program.maps, strict=True):
        arrays[f"{name}_constant"] = m.constant
        maps[name] = [[b.channel, b.size] for b in m.blocks]
        for i, b in enumerate(m.blocks):
            arrays |= {f"{name}_{i}_rows": b.rows, f"{name}_{i}_cols": b.cols, f"{name}_{i}_coefs": b.coefs}
    outputs = []
    for i, o in enumerate((*program.outputs, program.value)):
        arrays |= {f"output_{i}_rows": o.rows, f"output_{i}_cols": o.cols, f"output_{i}_coefs": o.coefs}
        outputs.append([o.name, list(o.shape), o.source, o.exponential, o.sign])
    header = {
        "format": FORMAT,
        "kind": program.kind,
        "n": s.n,
        "cones": [[*cone_record(cone), count] for cone, count in s.cones.blocks],
        "parameters": [[p.name, list(p.shape), list(p.attributes)] for p in program.parameters],
        "channels": [[c.parameter, c.size, c.log] for c in program.channels],
        "maps": maps,
        "outputs": outputs,
        "settings": settings,
    }
    _write(path, header, arrays)


def _write(path: str | Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    with Path(path).open("wb") as file:
        text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        np.savez_compressed(file, **{"header": text, **arrays})  # type: ignore[arg-type]


def load(path: str | Path) -> tuple[ConeProgram | None, dict[str, Any]]:
    """Read what `save` wrote; nothing in the file is executed, and every index is checked.

    Raises:
        StoreError: The file is no saved layer, is damaged, or is larger than `LIMIT`.
    """
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > LIMIT:
            raise StoreError("the saved layer is too large", where=where, expected=f"at most {LIMIT} bytes", got=f"{size}")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header = json.loads(bytes(arrays.pop("header")).decode())
        if header.get("format") != FORMAT:
            raise StoreError("the saved layer has another format", expected=f"{FORMAT}", got=f"{header.get('format')}")
        program = None if header["kind"] == "settings" else _program(header, arrays)
        return program, dict(header["settings"])
    except StoreError:
        raise
    except FileNotFoundError:
        raise
    except Exception as error:
        raise StoreError("the file is not a saved layer, or is damaged", where=where, got=f"{type(error).__name__}: {error}") from error


def _program(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> ConeProgram:
    _require(header["kind"] in ("DCP", "DGP", *MATRIX_KINDS), "the kind of the saved layer is unknown", "kind")
    n = _whole(header["n"], "n")
    cones = _cones(header["cones"])
    parameters = tuple(ParameterSpec(str(name), _shape(shape, name), tuple(map(str, a))) for name, shape, a in header["parameters"])
    channels = tuple(Channel(_whole(p, "channels"), _whole(size, "channels"), bool(log)) for p, size, log in header["channels"])
    for c in channels:
        fits = c.parameter < len(parameters) and c.size == parameters[c.parameter].size
        _require(fits, "a channel of the saved layer does not fit its parameter", "channels")
    _require(sum(c.size for c in channels) <= LARGEST, "the parameters of the saved layer are too large", "parameters")

    def index(name: str, bound: int) -> np.ndarray:
        a = arrays[name]
        if a.ndim != 1 or a.dtype.kind != "i" or (a.size and (a.min() < 0 or a.max() >= bound)):
            raise StoreError("an index of the saved layer is out of range", where=name, expected=f"integers in [0, {bound})")
        return a.astype(np.intp)

    def numbers(name: str, size: int) -> np.ndarray:
        a = arrays[name]
        if a.shape != (size,) or a.dtype.kind != "f" or not np.isfinite(a).all():
            raise StoreError("an array of the saved layer is malformed", where=name, expected=f"{size} finite numbers")
        return a.astype(float)

    def entries(name: str, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
        i, j = index(f"{name}_rows", rows), index(f"{name}_cols", cols)
        _require(len(i) == len(j), "rows and columns of the saved layer are not aligned", name)
        return i, j

    structure = Structure(n, *entries("P", n, n), *entries("A", cones.m, n), cones)
    _check_patterns(structure)
    sizes = {"P": len(structure.P_rows), "q": n, "d": 1, "A": len(structure.A_rows), "b": cones.m}
    maps = {}
    for name, size in sizes.items():
        blocks = []
        for i, (channel, width) in enumerate(header["maps"][name]):
            fits = 0 <= channel < len(channels) and width == channels[channel].size
            _require(fits, "a map of the saved layer does not fit its channel", name)
            rows, cols = entries(f"{name}_{i}", size, width)
            blocks.append(Block(int(channel), rows, cols, numbers(f"{name}_{i}_coefs", len(rows)), int(width)))
        maps[name] = AffineMap(numbers(f"{name}_constant", size), tuple(blocks))
    sources = {"primal": n, "dual": cones.m, "value": 1}
    outputs = []
    for i, (name, shape, source, exponential, sign) in enumerate(header["outputs"]):
        shape = _shape(shape, name)
        _require(source in sources and sign in (1, -1), "an output of the saved layer is malformed", str(name))
        rows, cols = entries(f"output_{i}", int(np.prod(shape, dtype=int)), sources[source])
        coefs = numbers(f"output_{i}_coefs", len(rows))
        outputs.append(OutputSpec(str(name), shape, source, rows, cols, coefs, bool(exponential), float(sign)))
    _require(outputs[-1].source == "value", "the saved layer has no optimal value", "outputs")
    return ConeProgram(
        structure,
        **maps,
        parameters=parameters,
        channels=channels,
        outputs=tuple(outputs[:-1]),
        value=outputs[-1],
        kind=header["kind"],
    )


def _require(holds: bool, what: str, where: str) -> None:
    if not holds:
        raise StoreError(what, where=where)


def _whole(value: Any, where: str) -> int:
    if type(value) is not int or value < 0:
        raise StoreError("a size of the saved layer is not a whole number", where=where, got=repr(value))
    return value


def _shape(shape: Any, where: str) -> tuple[int, ...]:
    out = tuple(_whole(k, str(where)) for k in shape)
    _require(math.prod(out) <= LARGEST, "an array of the saved layer is too large", str(where))
    return out


def _cones(records: Any) -> Product:
    blocks = tuple((cone_from_record(name, arguments), _whole(count, "cones")) for name, arguments, count in records)
    for cone, count in blocks:
        alphas = getattr(cone, "alpha", 0.0)
        sound = type(cone.dim) is int and cone.dim > 0 and count > 0 and (not isinstance(alphas, tuple) or len(alphas) == count)
        _require(sound, "a cone of the saved layer is malformed", cone.name)
    ranks = [_ORDER.index(cone.name) for cone, _ in blocks if cone.name in _ORDER]
    _require(ranks == sorted(ranks), "the cones of the saved layer are not in the standard order", "cones")
    return Product(blocks)


def _check_patterns(s: Structure) -> None:
    """A sorted by row and column, P in its upper triangle, no entry twice."""
    _require(bool(np.all(np.diff(s.A_rows * max(s.n, 1) + s.A_cols) > 0)), "the entries of A are not in order", "A")
    _require(bool(np.all(s.P_rows <= s.P_cols)), "an entry of P lies below the diagonal", "P")
    _require(len(np.unique(s.P_cols * max(s.n, 1) + s.P_rows)) == len(s.P_rows), "P has an entry twice", "P")
