"""Save and load a cone program as one file: arrays and a JSON header in a .npz archive, no pickle, everything validated."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from layercompiler.cones import Product, cone_from_record, cone_record
from layercompiler.errors import StoreError
from layercompiler.programs.affine import AffineMap, Block, Channel
from layercompiler.programs.cone import ConeProgram, OutputSpec, ParameterSpec, Structure

FORMAT = 1
LIMIT = 2 << 30  # bytes of an archive, uncompressed


def save(path: str | Path, program: ConeProgram, settings: dict[str, Any]) -> None:
    """Write a program and the settings it was compiled with.

    Args:
        path: File to write; ".npz" by custom.
        program: The program.
        settings: JSON-able settings of the compiled problem.
    """
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
    with Path(path).open("wb") as file:
        np.savez_compressed(file, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)


def load(path: str | Path) -> tuple[ConeProgram, dict[str, Any]]:
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
        return _program(header, arrays), dict(header["settings"])
    except StoreError:
        raise
    except FileNotFoundError:
        raise
    except Exception as error:
        raise StoreError("the file is not a saved layer, or is damaged", where=where, got=f"{type(error).__name__}: {error}") from error


def _program(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> ConeProgram:
    if header.get("format") != FORMAT:
        raise StoreError("the saved layer has another format", expected=f"{FORMAT}", got=f"{header.get('format')}")
    n = int(header["n"])
    cones = Product(tuple((cone_from_record(name, size), int(count)) for name, size, count in header["cones"]))
    channels = tuple(Channel(int(p), int(size), bool(log)) for p, size, log in header["channels"])
    parameters = tuple(ParameterSpec(str(name), tuple(map(int, shape)), tuple(map(str, a))) for name, shape, a in header["parameters"])
    for c in channels:
        if not 0 <= c.parameter < len(parameters) or c.size != parameters[c.parameter].size:
            raise StoreError("a channel of the saved layer does not fit its parameter")

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

    structure = Structure(n, index("P_rows", n), index("P_cols", n), index("A_rows", cones.m), index("A_cols", n), cones)
    sizes = {"P": len(structure.P_rows), "q": n, "d": 1, "A": len(structure.A_rows), "b": cones.m}
    maps = {}
    for name, size in sizes.items():
        blocks = []
        for i, (channel, width) in enumerate(header["maps"][name]):
            if not 0 <= channel < len(channels) or width != channels[channel].size:
                raise StoreError("a map of the saved layer does not fit its channel", where=name)
            rows = index(f"{name}_{i}_rows", size)
            blocks.append(Block(int(channel), rows, index(f"{name}_{i}_cols", width), numbers(f"{name}_{i}_coefs", len(rows)), int(width)))
        maps[name] = AffineMap(numbers(f"{name}_constant", size), tuple(blocks))
    outputs = []
    for i, (name, shape, source, exponential, sign) in enumerate(header["outputs"]):
        shape = tuple(map(int, shape))
        rows = index(f"output_{i}_rows", int(np.prod(shape, dtype=int)))
        cols = index(f"output_{i}_cols", {"primal": n, "dual": cones.m, "value": 1}[source])
        outputs.append(
            OutputSpec(str(name), shape, source, rows, cols, numbers(f"output_{i}_coefs", len(rows)), bool(exponential), float(sign))
        )
    return ConeProgram(
        structure,
        **maps,
        parameters=parameters,
        channels=channels,
        outputs=tuple(outputs[:-1]),
        value=outputs[-1],
        kind=str(header["kind"]),
    )
