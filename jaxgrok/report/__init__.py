"""The page of a sweep: one HTML file that holds its data, its style and its programs, and needs no network.

page.html, page.css   the template and its style
charts.js             what every section is built of
runs.js               the curves of all runs, the share that has not grokked, the phase diagram
circuit.js            the circuit over training
network.js            the forward pass, as the page computes it
at_work.js            the network at work
page.js               the controls
uplot/                uPlot 1.6.32 (MIT), which draws the lines: 51 kB, and quick with hundreds of them
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from jaxgrok.atomic import bad_place, replace_text
from jaxgrok.report.data import page_data
from jaxgrok.scorecard import Row
from jaxgrok.store.results import Results

__all__ = ["page", "page_data", "write_page"]


SCRIPTS = ("network", "charts", "runs", "circuit", "at_work", "page")  # in the order in which they run
RELOAD_SECONDS = 15  # between the times that a live page loads itself


def page(results: Results, live: bool = False, claims: Sequence[Row] | None = None) -> str:
    """The page of a sweep, as HTML. live: whether it loads itself anew, since it will be written again. claims: those
    that are measured on it; None means measure them."""
    here = files("jaxgrok.report")
    # A script element ends at the first `</`, wherever that stands.
    data = json.dumps(page_data(results, claims), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "live": f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' if live else "",
        "style": (here / "uplot/uPlot.min.css").read_text() + (here / "page.css").read_text(),
        "data": data,
        "uplot": (here / "uplot/uPlot.iife.min.js").read_text(),
        "script": "\n".join((here / f"{name}.js").read_text() for name in SCRIPTS),
    }
    return Template((here / "page.html").read_text()).substitute(parts)


def write_page(
    results: Results, path: Path | None = None, live: bool = False, claims: Sequence[Row] | None = None
) -> Path:
    """Write report.html into the sweep's directory, or under another name, and return its path. live, claims: as for
    `page`.

    Raises BadInput if it cannot be written there.
    """
    path = results.path / "report.html" if path is None else path
    with bad_place("report", path.parent):  # which is not made: a directory that has vanished stays away
        replace_text(path, page(results, live, claims))
    return path
