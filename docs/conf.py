"""How Sphinx makes the pages: `make docs`.

The source folder is the repository itself, so that a link between two pages is the same on GitHub and here.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import clada

project = "clada and cladastats"
author = "The clada authors"
release = version = clada.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = [
    "docs/*.md",
    "corpora/*.md",
    "benchmarks/selection-log.md",
    "figures/*.md",
    "figures/tables/*.md",
    "notebooks/*.ipynb",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
root_doc = "docs/index"

myst_heading_anchors = 3  # links to headings, named as GitHub names them
nb_execution_mode = "off"  # notebooks are shown as they are kept; `make check` runs them

default_role = "code"  # names in docstrings stand in single backticks
napoleon_use_rtype = False  # what is returned is one sentence
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
add_module_names = False

html_theme = "furo"
html_title = f"clada {release}"
html_show_copyright = False
