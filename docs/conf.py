"""Sphinx configuration. Built with warnings as errors and every reference checked: ``nox -s docs``."""

from __future__ import annotations

from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.util.nodes import make_refnode

if TYPE_CHECKING:
    from docutils.nodes import Element, TextElement, math, math_block
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment
    from sphinx.writers.html5 import HTML5Translator

project = "vitcop"
author = "vitcop contributors"
copyright = "2026, vitcop contributors"
release = installed_version("vitcop-core")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"vitcop {release}"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

# No inventory of another project is fetched, so its names cannot resolve. Only such names are excused.
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|fractions|numpy|os|pathlib|PIL|torch|transformers|types|typing)\..*"),
    (r"py:class", r"Fraction|Path|StrPath"),  # in the alias of a union, which is printed as it was written
]


def resolve_short_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement) -> Element | None:
    """Let docstrings write ``Plan`` or ``VisionCut.keep`` from any module, as code does, where the name is unique."""
    domain = env.domains.python_domain
    if node.get("refdomain") != "py":
        return None
    found = [name for name, _ in domain.find_obj(env, "", "", node["reftarget"], None, searchmode=1)]
    if len(found) != 1:
        return None
    entry = domain.objects[found[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, [content], found[0])


def skip_tuple_fields(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Skip the fields of a NamedTuple, which stand in its Attributes section; as members they would be listed twice."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def read_no_inline_type(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from reading ``The mean: over layers`` as a type and a text; types here are annotations."""
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]


def mathml(latex: str, display: str) -> str:
    """Write equations as MathML into the page, so that they need neither scripts nor a network."""
    found: str = convert(latex, display=display)
    if "\\" in found:  # a command that the converter does not know stays as it was written
        raise ValueError(f"equation must use commands that latex2mathml knows, got {latex!r}")
    return found


def write_inline_math(writer: HTML5Translator, node: math) -> None:
    writer.body.append(mathml(node.astext(), "inline"))
    raise SkipNode


def write_math_block(writer: HTML5Translator, node: math_block) -> None:
    writer.body.append(f'<div class="equation">{mathml(node.astext(), "block")}</div>\n')
    raise SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (write_inline_math, None), (write_math_block, None))
    app.connect("autodoc-process-docstring", read_no_inline_type, priority=400)  # before napoleon, at 500
    app.connect("missing-reference", resolve_short_name)
    app.connect("autodoc-skip-member", skip_tuple_fields)
