"""Sphinx configuration. Build with ``sphinx-build -W --keep-going -b html docs docs/_build``.

The build needs no network. With ``IMAGERYXR_DOCS_INTERSPHINX=1`` it fetches the inventories of other projects, and
names such as ``xarray.DataArray`` become links.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent.resolve()

# Pages run in kernels of their own, in a temporary folder: they import `tissue` from here and leave no files.
sys.path.insert(0, str(HERE))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

project = "imageryxr"
author = "the imageryxr authors"
copyright = author
version = release = installed_version("imageryxr")

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_data", "_templates", "gallery", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]

# Pages in MyST Markdown with ```{code-cell} blocks.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 180
nb_merge_streams = True
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

# The gallery: each script of `gallery` becomes a page of `generated/gallery`.
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "generated/gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("matplotlib", "picture_scraper.save_picture"),
    "ignore_repr_types": r"PIL|matplotlib|xarray\.plot",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "notebook_extensions": set(),  # the scripts need `tissue`, which a downloaded notebook lacks
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "thumbnail_size": (320, 280),
    "write_computation_times": False,
}

# The API reference.
autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints = "none"  # numpydoc's Parameters sections state the types
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

if os.environ.get("IMAGERYXR_DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "dask": ("https://docs.dask.org/en/stable", None),
        "distributed": ("https://distributed.dask.org/en/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "python": ("https://docs.python.org/3", None),
        "xarray": ("https://docs.xarray.dev/en/stable", None),
        "zarr": ("https://zarr.readthedocs.io/en/stable", None),
    }

html_theme = "pydata_sphinx_theme"
html_title = "imageryxr"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_sidebars = {"**": []}  # the pages are flat: the theme's sidebar would be empty
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    # More links, or a search field, would move to a second row.
    "header_links_before_dropdown": 4,
    "navbar_persistent": ["search-button"],
    "secondary_sidebar_items": ["page-toc"],
}
