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


def setup(app):
    """Docstrings write shapes as (batch..., *shape): a star there is no emphasis."""

    def escape(app, what, name, obj, options, lines):
        lines[:] = [re.sub(r"(?<![\w`*\\])\*(?=\w)", r"\\*", line) for line in lines]

    app.connect("autodoc-process-docstring", escape, priority=400)
