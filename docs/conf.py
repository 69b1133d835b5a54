"""Sphinx settings of the site that `thesis docs` builds: readable from disk, nothing loaded from elsewhere."""

project = "Anomaly detection on a Raspberry Pi: companion to a thesis"
author, copyright = "The maintainers of the thesis companion", "the maintainers, under Apache-2.0"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
html_theme = "sphinx_book_theme"
html_title = "Thesis companion"
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "use_fullscreen_button": False,
                      "navbar_persistent": []}       # the search field stands in the sidebar
html_static_path, html_css_files = ["_static"], ["site.css"]
html_context = {"default_mode": "auto"}
html_extra_path = ["extra"]                     # the result rows
html_copy_source = False
html_show_search_summary = False                # a page on disk may not fetch another one
nb_render_markdown_format = "myst"              # what a cell displays as Markdown has tables, formulas and links, too
nb_execution_mode = "off"                       # the notebooks were executed by `thesis run`
nb_ipywidgets_js = {}                           # their script would come from a server
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["extra"]
suppress_warnings = ["mystnb.unknown_mime_type"]
