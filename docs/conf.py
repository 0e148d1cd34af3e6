"""Sphinx: pages in Markdown, notebooks, the API from docstrings. Build: sphinx-build -W docs docs/_build/html."""

import shutil
import sys
from pathlib import Path
from typing import Any

from strm_lightning import __version__

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

from generate import expand  # noqa: E402
from links import resolve  # noqa: E402

project = "strm-lightning"
author = "strm-lightning maintainers"
html_show_copyright = False
release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "jupyter_execute", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"strm-lightning {__version__}"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks are stored with their output; tests/test_notebooks.py runs them
default_role = "py:obj"  # a link where the name is documented, code where it is not
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False  # Lightning's hooks are explained by Lightning
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
nitpicky = True  # a reference to a name of this package that does not exist is an error


def _copy_notebooks() -> None:
    """Copy the notebooks into the source folder: Sphinx reads no files outside of it."""
    folder = DOCS / "notebooks"
    for source in (DOCS.parent / "experiments" / "notebooks").glob("*.ipynb"):
        target = folder / source.name
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            folder.mkdir(exist_ok=True)
            shutil.copyfile(source, target)


def setup(app: Any) -> None:
    """Expand generated parts when a page is read; link short names."""

    def read(*event: Any) -> None:
        source = event[2]
        source[0] = expand(source[0])

    _copy_notebooks()
    app.connect("source-read", read)
    app.connect("missing-reference", resolve)
