"""Makes docs/tutorial.ipynb from docs/tutorial.md: `python docs/notebook.py`.

A block of bash becomes a cell of %%bash, and a block of Python a cell of code. The section about installation is
replaced by a cell that installs. What a block prints is left out, for the notebook prints it itself; so are links into
the site, which a notebook cannot follow.
"""

import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat

DOCS = Path(__file__).resolve().parent
TUTORIAL, NOTEBOOK = DOCS / "tutorial.md", DOCS / "tutorial.ipynb"
INSTALL = """\
import importlib.util

# Where jaxgrok is: a folder with a copy of the repository, or `git+` and the address of a repository.
SOURCE = "."

if importlib.util.find_spec("jaxgrok") is None:
    %pip install --quiet {SOURCE}
"""
INTRODUCTION = """\
## Install

The next cell installs jaxgrok, if it is not installed. On Colab and its like, first upload a copy of the repository, or
give the address of one as `SOURCE`.
"""


def _for_a_notebook(text: str) -> str:
    """The tutorial without what only a page can have."""
    text = re.sub(r"## Install\n.*?(?=\n## )", INTRODUCTION + "\n<!-- install -->\n", text, count=1, flags=re.S)
    text = re.sub(r"\n```text\n.*?\n```\n", "", text, flags=re.S)
    text = re.sub(r"\n!\[[^\]]*\]\([^)]*\)\n", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


def notebook_of(text: str) -> Any:
    """The notebook of a tutorial in Markdown."""
    notebook = jupytext.reads(_for_a_notebook(text), fmt="md")
    cells = []
    for cell in notebook.cells:
        before, mark, after = cell.source.partition("<!-- install -->")
        if mark:
            cells += [nbformat.v4.new_markdown_cell(before.strip()), nbformat.v4.new_code_cell(INSTALL.strip())]
            cells += [nbformat.v4.new_markdown_cell(after.strip())] if after.strip() else []
        else:
            cells.append(cell)
    for number, cell in enumerate(cells):
        cell["id"], cell["metadata"] = f"cell-{number}", {}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


if __name__ == "__main__":
    NOTEBOOK.write_text(nbformat.writes(notebook_of(TUTORIAL.read_text())) + "\n")
