"""Sphinx's configuration; it also writes the index of the API reference, docs/api/index.rst."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.ext.autodoc.mock import mock
from sphinx.writers.html5 import HTML5Translator

import softce_fast as sf

project = "softce_fast"
author = "the softce_fast developers"
copyright = author
version = release = sf.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
templates_path = ["_templates"]
exclude_patterns = ["gallery/*.ipynb", "sg_execution_times.rst"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False

# Libraries of adapters that are not installed: their pages show what the source says.
LIBRARIES = ("dask", "ml_dtypes", "onnx", "scipy", "sklearn", "torch")
autodoc_mock_imports = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
autodoc_typehints = "none"  # the docstrings have them
numpydoc_show_class_members = False
copybutton_exclude = ".linenos, .gp, .go"  # prompts and what was printed

sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "abort_on_example_error": True,
    "capture_repr": (),
    "download_all_examples": False,
    "min_reported_time": 1e6,  # no times in the pages
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "within_subsection_order": "FileNameSortKey",
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "softce_fast"
html_static_path = ["_static"]
html_css_files = ["softce_fast.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
    "show_prev_next": False,
    "secondary_sidebar_items": {"**": ["page-toc"], "benchmarks": [], "promises": []},
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"start": [], "benchmarks": [], "changelog": []}


# Formulas become MathML when the pages are made: nothing is fetched to show them.

html_math_renderer = "mathml"


def inline_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def displayed_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", (inline_math, None), (displayed_math, None))


# The API reference. A new public name appears by itself: in the section of the file that defines
# it, or with its module.

SECTIONS = {  # a file that is not named here is headed by the first line of its docstring
    "softce_fast._softmax": "Softmax",
    "softce_fast._losses": "Cross-entropy",
    "softce_fast._scores": "Scores",
    "softce_fast._linear": "Cross-entropy from hidden states",
    "softce_fast._binary": "Binary cross-entropy",
    "softce_fast._threads": "Threads",
    "softce_fast._config": "Configuration",
    "": "Results in parts",
}


def listing(names: list[str]) -> str:
    entries = "".join(f"   {name}\n" for name in names)
    return f".. autosummary::\n   :nosignatures:\n   :toctree: .\n\n{entries}\n"


def public(module: ModuleType) -> Iterator[str]:
    """The functions and classes that a module offers."""
    for name in module.__all__:
        if inspect.isroutine(getattr(module, name)) or inspect.isclass(getattr(module, name)):
            yield name


def section(title: str, text: str) -> str:
    return f"{title}\n{'-' * len(title)}\n\n{text}\n"


def top_level() -> Iterator[str]:
    files: dict[str, list[str]] = {file: [] for file in SECTIONS}
    for name in public(sf):
        found = getattr(sf, name)
        # Named tuples stand where the reference has them; they belong to no one function.
        files.setdefault("" if inspect.isclass(found) else found.__module__, []).append(name)
    for file, names in files.items():
        title = SECTIONS.get(file) or (importlib.import_module(file).__doc__ or "").splitlines()[0]
        yield section(title.rstrip("."), listing([f"~softce_fast.{name}" for name in names]))


def submodules() -> Iterator[str]:
    for found in pkgutil.iter_modules(sf.__path__, "softce_fast."):
        if "._" in found.name or found.name == "softce_fast.reference":
            continue
        with mock(autodoc_mock_imports):
            names = list(public(importlib.import_module(found.name)))
        text = f".. automodule:: {found.name}\n   :no-members:\n\n"
        yield section(found.name, text + (listing(names) if names else ""))


def write_api_index() -> None:
    title = "API reference"
    text = f"{title}\n{'=' * len(title)}\n\n" + "\n".join([*top_level(), *submodules()])
    reference = ".. automodule:: softce_fast.reference\n   :no-members:\n\n"
    text += "\n" + section("softce_fast.reference", reference)
    path = Path(__file__).parent / "api" / "index.rst"
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


write_api_index()
