"""Sphinx's settings; `tools/docs_site.py` gathers the pages that it reads.

Contract: Markdown alone, nothing of the built site is loaded from elsewhere.
"""

project = "diffgr2"
author = "the diffgr2 authors"
project_copyright = "the diffgr2 authors, Apache-2.0"
extensions = ["myst_parser"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 6  # links to headings as GitHub spells them
myst_links_external_new_tab = False
html_theme = "furo"
html_title = "diffgr2"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": False}
pygments_style = "friendly"
suppress_warnings = ["misc.highlighting_failure"]  # examples show … where something is left out
