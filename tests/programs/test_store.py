"""One file holds a compiled problem: the same bits come back, and nothing else gets in."""

import io
import json
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest

import layercompiler as lc
from layercompiler.errors import OptionError, StoreError
from layercompiler.programs import store
from tests.plan import families


@pytest.mark.parametrize("name", families.FAMILIES)
def test_what_is_loaded_computes_the_same_bits(name, tmp_path):
    case, problem, evaluation = families.case(name), families.compiled(name), families.solve(name)
    problem.save(tmp_path / "layer.npz")
    twin = lc.load(tmp_path / "layer.npz")
    other = twin.evaluate(case.theta)
    assert twin.fingerprint == problem.fingerprint and twin.describe() == problem.describe()
    assert twin.parameters == problem.parameters
    g, h = case.cotangents(evaluation, 0), case.direction(0)
    for a, b in (
        (other.outputs, evaluation.outputs),
        (other.vjp(g), evaluation.vjp(g)),
        (other.jvp(h), evaluation.jvp(h)),
        (other.hvp(g, h), evaluation.hvp(g, h)),
        (other.second(h, h), evaluation.second(h, h)),
    ):
        for u, v in zip(a, b, strict=True):
            np.testing.assert_array_equal(u, v)
    assert twin.solve(*case.theta).value == problem.solve(*case.theta).value


def test_settings_travel(tmp_path):
    options = lc.Options(tolerance=1e-6, max_iterations=77, workers=3, check_domain=False)
    problem = families.compiled("socp", solver="clarabel", on_error="flag", options=options)
    problem.save(tmp_path / "layer.npz")
    twin = lc.load(tmp_path / "layer.npz")
    assert (twin.solver, twin.on_error, twin.options) == ("clarabel", "flag", options)


def test_files_of_a_problem_are_equal_and_overwritten(tmp_path):
    problem = families.compiled("lp")
    path = tmp_path / "layer.npz"
    families.compiled("geometric").save(path)
    problem.save(path)
    assert lc.load(str(path)).fingerprint == problem.fingerprint


# What is refused ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "layer.npz"
    families.compiled("exponential").save(path)
    return path


def rewrite(path, change):
    """Change the header (a dict) and the arrays of a saved layer."""
    with np.load(path) as stored:
        arrays = dict(stored)
    header = json.loads(bytes(arrays.pop("header")))
    change(header, arrays)
    raw = json.dumps(header).encode() if isinstance(header, dict) else header
    np.savez(path, header=np.frombuffer(raw, np.uint8), **arrays)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_pickles_are_refused_and_nothing_is_executed(saved, tmp_path):
    objects = np.empty(3, dtype=object)
    objects[:] = Bomb()
    rewrite(saved, lambda header, arrays: arrays.update(q_constant=objects))
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb()))
    seen = []
    names = {"exec", "pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "socket.connect"}
    watching = [True]
    sys.addaudithook(lambda event, _: seen.append(event) if watching and event in names else None)
    try:
        for path in (saved, tmp_path / "raw.npz"):
            with pytest.raises(StoreError):
                lc.load(path)
    finally:
        watching.clear()
    assert seen == []


def test_loading_executes_nothing(saved):
    lc.load(saved)  # what is imported on first use is imported
    seen = []
    watching = [True]
    names = {"exec", "pickle.find_class", "subprocess.Popen", "os.system", "import"}
    sys.addaudithook(lambda event, _: seen.append(event) if watching and event in names else None)
    try:
        lc.load(saved)
    finally:
        watching.clear()
    assert seen == []


def entry(name, value):
    def change(_, arrays):
        arrays[name] = value(arrays[name]) if callable(value) else value

    return change


def setting(path, value):
    def change(header, _):
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = value(header[path[-1]]) if callable(value) else value

    return change


def first_to(value):
    def change(a):
        a = a.copy()
        a[0] = value
        return a

    return change


DAMAGE = {
    "no cone program": lambda header, arrays: arrays.clear(),
    "an index below": entry("A_rows", first_to(-1)),
    "an index above": entry("A_cols", first_to(10**6)),
    "an index of a map above": entry("b_0_rows", first_to(10**9)),
    "an index of a channel above": entry("b_0_cols", first_to(4)),
    "an index of an output above": entry("output_0_cols", first_to(10**6)),
    "an index of an output below": entry("output_0_rows", first_to(-1)),
    "indices as floats": entry("A_rows", lambda a: a.astype(float)),
    "indices of two dimensions": entry("A_rows", lambda a: a[None]),
    "patterns of unequal length": entry("A_cols", lambda a: a[:-1]),
    "patterns of P of unequal length": entry("P_cols", lambda a: np.append(a, 0)),
    "maps of unequal length": entry("b_0_cols", lambda a: a[:-1]),
    "outputs of unequal length": entry("output_0_cols", lambda a: a[:-1]),
    "entries of A out of order": entry("A_rows", lambda a: a[::-1].copy()),
    "an entry of A twice": lambda header, arrays: [entry(n, lambda a: np.r_[a[:1], a[:-1]])(header, arrays) for n in ("A_rows", "A_cols")],
    "an entry below the diagonal of P": lambda header, arrays: arrays.update(
        P_rows=np.array([1]), P_cols=np.array([0]), P_constant=np.ones(1)
    ),
    "an entry of P twice": lambda header, arrays: arrays.update(P_rows=np.array([0, 0]), P_cols=np.array([1, 1]), P_constant=np.ones(2)),
    "NaN": entry("b_constant", first_to(np.nan)),
    "an infinity": entry("A_constant", first_to(np.inf)),
    "a wrong size": entry("q_constant", lambda a: a[:-1]),
    "complex numbers": entry("q_constant", lambda a: a.astype(complex)),
    "text": entry("q_constant", lambda a: a.astype(str)),
    "a missing array": lambda header, arrays: arrays.pop("b_constant"),
    "another format": setting(["format"], 99),
    "no format": lambda header, arrays: header.pop("format"),
    "an unknown cone": setting(["cones", 0, 0], "hyperbolic"),
    "an attribute of the registry as a cone": setting(["cones", 0, 0], "__class__"),
    "a cone with wrong arguments": setting(["cones", 0, 1], [1, 2, 3]),
    "a negative count of cones": lambda header, arrays: header["cones"].extend([["nonnegative", [], 5], ["nonnegative", [], -5]]),
    "a cone of no rows": lambda header, arrays: header["cones"].append(["second_order", [0], 1]),
    "a cone of a negative order": lambda header, arrays: header["cones"].append(["psd", [-1], 1]),
    "a fractional dimension": lambda header, arrays: header["cones"].append(["second_order", [2.5], 2]),
    "a huge cone without rows": lambda header, arrays: header["cones"].append(["psd", [10**7], 0]),
    "an exponent out of range": lambda header, arrays: header["cones"].append(["power", [1.5], 1]),
    "a negative number of variables": setting(["n"], -3),
    "a channel of no parameter": setting(["channels", 0, 0], 7),
    "a channel of another size": setting(["channels", 0, 1], 3),
    "a map of no channel": setting(["maps", "b", 0, 0], 9),
    "an output from elsewhere": setting(["outputs", 0, 2], "tertiary"),
    "an output of another shape": setting(["outputs", 0, 1], [2]),
    "an output of a negative shape": setting(["outputs", 0, 1], [-2, -2]),
    "an output with a sign of 7": setting(["outputs", -1, 4], 7.0),
    "a parameter too large for any memory": lambda header, arrays: (
        header["parameters"].append(["huge", [10**14], []]),
        header["channels"].append([2, 10**14, False]),
    ),
    "a parameter of a negative shape": lambda header, arrays: header["parameters"].append(["odd", [-4], []]),
    "an unknown kind": setting(["kind"], "QCQP"),
    "an unknown option": setting(["settings", "options"], {"tolerance": 1e-8, "exploit": 1}),
    "an option out of range": setting(["settings", "options"], {"tolerance": -1.0}),
    "options that are no dict": setting(["settings", "options"], [1]),
    "two exponents for one power cone": lambda header, arrays: (
        header["cones"].append(["power", [[0.5, 0.5]], 1]),
        arrays.update(b_constant=np.append(arrays["b_constant"], np.zeros(3))),
    ),
    "cones out of order": lambda header, arrays: header["cones"].reverse(),
    "no engine": lambda header, arrays: header["settings"].pop("solver"),
    "an unknown way to fail": setting(["settings", "on_error"], "shrug"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused(what, saved):
    rewrite(saved, DAMAGE[what])
    with pytest.raises(StoreError):
        lc.load(saved)


def test_an_engine_that_is_unknown_here_is_named(saved):
    rewrite(saved, setting(["settings", "solver"], "os.system"))
    with pytest.raises(OptionError, match=r"unknown solver 'os\.system'"):
        lc.load(saved)


def test_headers_that_are_no_json_object(saved):
    for raw in (b"", b"[1, 2]", b"null", b"\xff\xfe", b"{" * 5000, b"[" * 100_000):
        with np.load(saved) as stored:
            arrays = dict(stored)
        arrays["header"] = np.frombuffer(raw, np.uint8)
        np.savez(saved.with_name("bad.npz"), **arrays)
        with pytest.raises(StoreError):
            lc.load(saved.with_name("bad.npz"))


def test_other_files(tmp_path):
    for name, content in {"empty": b"", "text": b"layer", "npy": npy(np.zeros(3)), "zip": zipped({"a.txt": b"hello"})}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreError):
            lc.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        lc.load(tmp_path / "nowhere.npz")


def test_truncated_files(saved):
    whole = saved.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        saved.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(StoreError):
            lc.load(saved)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_zip_bombs_are_refused_before_they_unfold(tmp_path, monkeypatch):
    """Megabytes of zeros in a few kilobytes: the sizes in the directory are added up first."""
    content = zipped({f"{i}.npy": b"\0" * 2_000_000 for i in range(10)})
    assert len(content) < 100_000
    path = tmp_path / "bomb.npz"
    path.write_bytes(content)
    monkeypatch.setattr(store, "LIMIT", 10_000_000)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(StoreError, match="too large"):
        lc.load(path)


@pytest.mark.parametrize("claim", [10**12, 2**62])
def test_an_array_that_claims_to_be_huge_is_refused(claim, saved):
    """A header of a few bytes that asks for terabytes."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({claim},)}}".encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64
    with zipfile.ZipFile(saved) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    saved.write_bytes(zipped(files | {"q_constant.npy": content}))
    with pytest.raises(StoreError):
        lc.load(saved)
