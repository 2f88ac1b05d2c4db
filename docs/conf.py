"""Sphinx configuration."""

import re

import layercompiler

project = "layercompiler"
version = release = layercompiler.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
html_theme = "furo"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_ivar = True
suppress_warnings = ["myst.header", "myst.xref_missing"]


def _plain(line):
    """Shapes as (batch..., *shape) and sizes as |y| are no markup; what is quoted stays as it is."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"(?<![\w*\\])\*+(?=\w)|\|", lambda m: "".join("\\" + c for c in m.group()), part) for part in parts[::2]]
    return "`".join(parts)


def _paragraphs(lines):
    """Indented examples and tables become literal blocks, and remarks such as 'Cost: ...' paragraphs of their own."""
    section = remark = example = False
    out = []
    for line in lines:
        if line.startswith("|"):
            line = "    " + line
        if line and not line.startswith(" "):
            section, remark, example = re.fullmatch(r"[A-Z][a-z]+:", line) is not None, re.match(r"[A-Z]\w+: \S", line) is not None, False
            out += [""] if remark else []
        elif line and not section and not remark and not example and not out[-1:][0]:
            example = True
            out += ["::", ""]
        out.append(line if example else _plain(line.strip() if remark else line))
    return out


def setup(app):
    """Docstrings are plain text with a few habits of their own."""

    def prepare(app, what, name, obj, options, lines):
        lines[:] = _paragraphs(lines)

    app.connect("autodoc-process-docstring", prepare, priority=400)
