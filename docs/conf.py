"""Sphinx configuration: Markdown sources, warnings are errors in CI."""

import os
from pathlib import Path

from kvproto import __version__

project = "kvproto"
author = "The kvproto authors"
project_copyright = "2026, the kvproto authors"
version = release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "repoze.sphinx.autointerface",
    "sphinxcontrib.towncrier.ext",
]
towncrier_draft_autoversion_mode = "draft"
towncrier_draft_working_directory = Path(__file__).resolve().parent.parent
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["kvproto.css"]
html_title = f"kvproto {version}"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
# Names stand in several places (a room re-exports them), and single backquotes in docstrings are
# for people: neither is an error.
suppress_warnings = ["ref.python", "autodoc.import_object"]

# Only what is published is linked with other projects: that needs a network.
if os.environ.get("KVPROTO_DOCS") == "published":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "twisted": ("https://docs.twisted.org/en/stable/api", None),
    }
