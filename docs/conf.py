"""Sphinx: pages in Markdown, the API from docstrings. Build: sphinx-build -W docs docs/_build."""

from strm_lightning import __version__

project = "strm-lightning"
author = "strm-lightning maintainers"
html_show_copyright = False
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"strm-lightning {__version__}"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
default_role = "py:obj"  # a link where the name is documented, code where it is not
autodoc_typehints = "none"  # the docstrings say shapes and meanings; jaxtyping's own words are long
autodoc_inherit_docstrings = False  # Lightning's hooks are explained by Lightning
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
