"""A sweep over two axes as a plane: what stands in each field is what was planted."""

import itertools
from dataclasses import replace

import pytest

from jaxgrok.config import Config, Run
from jaxgrok.figures import phase_diagram_figure
from jaxgrok.store.events import Outcome, Timing
from jaxgrok.store.records import RunRecord, Status
from jaxgrok.store.results import Cell
from jaxgrok.tables.phase_diagram import planes, readable_table, time_text
from tests.test_figures import collisions

CONFIG = Config(p=11)


def cell(fields, grokked, last=40_000):
    """A cell whose runs grokked at these epochs; None is a run that memorised only."""
    records, timings = [], []
    for seed, epoch in enumerate(grokked):
        run = Run(CONFIG, seed, frac=0.3)
        records.append(RunRecord(seed, run, last, 0, Status.TRAINED, last))
        outcome = Outcome.MEMORISED_ONLY if epoch is None else Outcome.GROKKED
        events = {} if epoch is None else {"grokked": (epoch - 10, epoch)}
        timings.append(Timing(outcome, last, settled=False, events=events))
    return Cell(tuple(fields.items()), records, timings)


@pytest.fixture
def cells():
    """Three weight decays times two fractions, without one of the six."""
    at = {(0.1, 0.3): [None, None], (1.0, 0.3): [7000, 8000], (1.0, 0.5): [900, None], (2.0, 0.5): [700, 800]}
    return [cell({"frac": frac, "wd": wd}, grokked) for (wd, frac), grokked in reversed(at.items())] + [
        cell({"frac": 0.3, "wd": 2.0}, [5000, 6000])
    ]


def test_fields_hold_what_was_planted(cells):
    (plane,) = planes(cells)
    assert (plane.down, plane.across) == ("frac", "wd")
    assert (plane.rows, plane.columns) == ([0.3, 0.5], [0.1, 1.0, 2.0])
    header, rows = readable_table(plane)
    assert header == ["frac \\ wd", "0.1", "1", "2"]
    assert rows == [
        ["0.3", "0/2 at > 40,000; 2 memorised only", "2/2 at 7,000", "2/2 at 5,000"],
        ["0.5", "-", "1/2 at 900; 1 memorised only", "2/2 at 700"],
    ]


def test_runs_that_lost_it_are_counted_where_their_median_is(cells):
    lost = [replace(timing, outcome=Outcome.LOST) for timing in cells[0].timings]
    (plane,) = planes([replace(cells[0], timings=lost), *cells[1:]])
    assert readable_table(plane)[1][1][3] == "2/2 at 700; 2 lost"


def test_runs_that_diverged_at_once_have_no_time(cells):
    diverged = [replace(timing, outcome=Outcome.DIVERGED, last_epoch=0, events={}) for timing in cells[0].timings]
    (plane,) = planes([replace(cells[0], timings=diverged), *cells[1:]])
    assert readable_table(plane)[1][1][3] == "0/2 at -; 2 diverged"


def test_other_axes_give_a_plane_each(cells):
    more = [replace(one, fields=(*one.fields, ("lr", lr))) for lr, one in itertools.product((1e-3, 1e-2), cells)]
    assert [plane.name for plane in planes(more)] == ["lr=0.001", "lr=0.01"]
    assert [len(plane.cells) for plane in planes(more)] == [5, 5]


def test_one_axis_or_none_gives_no_plane(cells):
    assert planes([]) == planes(cells[:1]) == []
    assert planes([replace(one, fields=one.fields[1:]) for one in cells[:2]]) == []


def test_unlimited_data_comes_last(cells):
    fields = itertools.product((None, 700, 100), (1.0, 0.1))
    (plane,) = planes([replace(cells[0], fields=(("n_train", n), ("wd", wd))) for n, wd in fields])
    assert plane.rows == [100, 700, None]
    assert [row[0] for row in readable_table(plane)[1]] == ["100", "700", "unlimited"]


def test_the_figure_names_every_field(cells, monkeypatch):
    figure = phase_diagram_figure(planes(cells))
    assert not collisions(figure, monkeypatch)
    shown = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert shown == {"0/2\n> 40,000", "2/2\n7,000", "2/2\n5,000", "1/2\n900", "2/2\n700"}
    assert time_text(cells[-1]) == "5,000"
