"""Sphinx configuration: Markdown sources, warnings are errors in CI."""

project = "kvproto"
author = "The kvproto authors"
project_copyright = "2026, the kvproto authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "alabaster"
autodoc_member_order = "bysource"
