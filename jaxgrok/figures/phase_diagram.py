"""A sweep over two axes as a map: when runs grok at each point, and how many do."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxgrok.figures.style import make_figure, styled
from jaxgrok.store.results import text_of
from jaxgrok.tables.phase_diagram import Plane, arrived, share_text, time_text

NEVER = "0.85"  # where half of the runs have not grokked
MAP = mpl.colormaps["viridis_r"]  # dark is late
FIELD = (0.95, 0.55)  # inches of one point
BRIGHTNESS = (0.299, 0.587, 0.114)  # of red, green and blue


@styled
def phase_diagram_figure(planes: Sequence[Plane]) -> Figure:
    """One map a plane. Colour: the median epoch at which runs grokked; grey: half of them have not. In each field: how
    many runs grokked, of how many, and the median."""
    rows, columns = max(len(plane.rows) for plane in planes), max(len(plane.columns) for plane in planes)
    height = 0.9 + FIELD[1] * rows
    figure, axes = make_figure(1.9 + FIELD[0] * columns, height * len(planes), rows=len(planes), squeeze=False)
    medians = [m.value for plane in planes for m in map(arrived, plane.cells.values()) if m.value is not None]
    norm = LogNorm(max(1, min(medians)), max(2, *medians)) if medians else LogNorm(1, 10)
    for plane, panel in zip(planes, axes[:, 0], strict=True):
        _draw(panel, plane, norm)
    if medians:
        shown = ScalarMappable(norm, MAP)
        unlimited = all(cell.unlimited for plane in planes for cell in plane.cells.values())
        label = f"{'learned' if unlimited else 'grokked'} at (epoch)"
        figure.colorbar(shown, ax=list(axes[:, 0]), label=label)
    return figure


def _draw(axes: Axes, plane: Plane, norm: LogNorm) -> None:
    for (y, x), cell in plane.cells.items():
        at = plane.columns.index(x), plane.rows.index(y)
        median = arrived(cell).value
        colour = to_rgb(NEVER if median is None else MAP(norm(median)))
        axes.add_patch(Rectangle((at[0] - 0.5, at[1] - 0.5), 1, 1, color=colour, lw=0))
        ink = "k" if np.dot(colour, BRIGHTNESS) > 0.5 else "w"
        text = f"{share_text(cell)}\n{time_text(cell)}"
        axes.text(*at, text, ha="center", va="center", color=ink, fontsize=8)
    axes.set(xlim=(-0.5, len(plane.columns) - 0.5), ylim=(-0.5, len(plane.rows) - 0.5))
    axes.set_xticks(range(len(plane.columns)), [text_of(plane.across, x) for x in plane.columns])
    axes.set_yticks(range(len(plane.rows)), [text_of(plane.down, y) for y in plane.rows])
    axes.set(xlabel=plane.across, ylabel=plane.down)
    if plane.name:
        axes.set_title(plane.name, loc="left")
