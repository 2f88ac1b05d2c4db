"""RESULTS.md, one section per benchmark: each run replaces its own and leaves the others."""

from pathlib import Path

PATH = Path(__file__).parent / "RESULTS.md"
ORDER = ("cone", "threads", "qp", "kernels", "discrete", "least_squares", "implicit", "gpu_qp")


def write(section, text, path=PATH):
    """Replace a section of the file by `text` (Markdown that begins with a heading of level two)."""
    path = Path(path)
    old = path.read_text() if path.exists() else ""
    parts = {name: _between(old, name) for name in ORDER}
    parts[section] = text.strip()
    body = [f"{_begin(name)}\n{parts[name]}\n{_end(name)}" for name in ORDER if parts[name]]
    path.write_text("\n\n".join(["# Results of `make bench`", *body]) + "\n")


def _between(text, name):
    return text.split(_begin(name), 1)[1].split(_end(name), 1)[0].strip() if _begin(name) in text else ""


def _begin(name):
    return f"<!-- {name}: begin -->"


def _end(name):
    return f"<!-- {name}: end -->"
