"""The search for the smallest dataset: rounds that follow from what is on disk, its table and figure, and refusals."""

import csv
from dataclasses import replace

import jax
import numpy as np
import pytest

import jaxgrok
from jaxgrok import figures
from jaxgrok import search as crossover
from jaxgrok.cli import crossover as command
from jaxgrok.config import BadInput
from jaxgrok.memory import device_memory
from jaxgrok.stats import Arrival
from jaxgrok.tables import sizes as size_tables
from jaxgrok.tables.sizes import AtSize, Sizes
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.sweep import Interrupted, sweep
from tests.on_disk import StopAt, curves, tables_see
from tests.test_figures import collisions, words

# One-digit sums of which a tiny network learns all or, from few examples, nothing.
SETTINGS = {
    "task": "addition1",
    "d_model": 16,
    "n_heads": 2,
    "seeds": 2,
    "lr": 1e-2,
    "wd": 1.0,
    "max_epochs": 60,
    "eval_every": 10,
}
RANGE = {"low": 5, "high": 90, "count": 2, "precision": 4}


def arrivals(*pairs):
    return [Arrival(*pair) for pair in pairs]


def late_and_early():
    """Sizes 10 to 80: none generalises, then late, then at once."""
    never, always = arrivals((1000, False), (1000, False)), arrivals((100, True), (100, True))
    return Sizes(
        [
            AtSize(10, [False, False], always, never),
            AtSize(20, [False, True], always, arrivals((1000, False), (900, True))),
            AtSize(40, [True, True], always, arrivals((500, True), (700, True))),
            AtSize(80, [True, True], always, arrivals((120, True), (130, True))),
        ]
    )


def test_the_crossover_lies_where_half_generalise_and_the_window_above_it():
    sizes = late_and_early()
    assert 14 < sizes.crossover.size < 28
    assert sizes.window() == (40, 80)
    assert [at.is_late for at in sizes.of_sizes] == [None, True, True, False]
    window = "Grokking window: from the crossover to 40; the largest size of this search."
    last, first = Sizes(sizes.of_sizes[:3]).window()
    assert (last, first) == (40, None)
    assert (
        size_tables.size_lines(sizes)[1] == "Grokking window: from the crossover to 40; runs no longer grok late at 80."
    )
    assert size_tables.size_lines(Sizes(sizes.of_sizes[:3]))[1] == window
    ends = Sizes([sizes.of_sizes[0], sizes.of_sizes[3]])
    assert size_tables.size_lines(ends)[1].endswith("was in it; it ends below 80.")


def test_the_figure_shows_each_run_and_the_crossover(monkeypatch):
    figure = figures.crossover_figure(late_and_early())
    assert not collisions(figure, monkeypatch)
    assert "crossover 20 [" in words(figure)
    dots = [line for line in figure.axes[1].lines if line.get_marker() == "."]
    assert len(dots) == 8 + 5


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    path = tmp_path_factory.mktemp("search") / "runs"
    rounds = []
    crossover.search(SETTINGS, path, **RANGE, round_done=rounds.append)
    return path, rounds


def test_a_search_tries_rounds_in_one_sweep_directory(searched):
    path, rounds = searched
    results = jaxgrok.load(path)
    tried = sorted({record.run.n_train for record in results.runs})
    assert tried[0] == 5
    assert tried[-1] == 90
    assert [at.size for at in rounds[0].of_sizes] == [5, 90]
    assert [at.size for at in rounds[-1].of_sizes] == tried
    sizes = size_tables.sizes_of(results)
    size_tables.write_size_tables(results, sizes)
    with open(path / "tables" / "crossover.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["n_train"]) for row in rows] == tried
    assert all(row["runs"] == "2" for row in rows)


def test_a_run_that_is_still_training_is_no_outcome(tmp_path):
    path = tmp_path / "runs"
    with pytest.raises(Interrupted):
        crossover.search(SETTINGS, path, **RANGE, watch=lambda: StopWatch(150))
    results = jaxgrok.load(path)
    assert all(record.last_epoch > 0 for record in results.runs)
    assert [(at.size, len(at.generalised)) for at in size_tables.sizes_of(results).of_sizes] == [(5, 2)]


def test_a_finished_search_trains_nothing_and_an_interrupted_one_resumes(searched, tmp_path):
    path, _ = searched
    before = {file: file.stat().st_mtime_ns for file in (path / "checkpoints").rglob("*")}
    crossover.search(SETTINGS, path, **RANGE)
    assert {file: file.stat().st_mtime_ns for file in (path / "checkpoints").rglob("*")} == before
    with pytest.raises(Interrupted):
        crossover.search(SETTINGS, tmp_path / "parts", **RANGE, watch=lambda: StopWatch(90))
    crossover.search(SETTINGS, tmp_path / "parts", **RANGE)
    whole, parts = curves(path), curves(tmp_path / "parts")
    assert (whole["n_train"] == parts["n_train"]).all()
    assert whole["train_loss"].tobytes() == parts["train_loss"].tobytes()


class StopWatch(StopAt):
    """StopAt as a context manager, like `live.Watch`."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"low": 90, "high": 5}, "high: got 5; accepted: more than low = 90"),
        ({}, {"high": 200}, "n_train: got 200; accepted: at least 1, and fewer than the task's 100 sequences"),
        ({}, {"part": "digit 7"}, "part: got 'digit 7'; accepted: a part of task addition1: digit 0, digit 1"),
        ({"lr": "0.1,0.2"}, {}, "lr: got '0.1,0.2'; accepted: one value: a search varies"),
        ({"d_model": "16,32"}, {}, "d_model: got '16,32'; accepted: one value"),
        ({"task": "add", "p": 5}, {}, "n_train"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_is_written(tmp_path, changes, options, message):
    with pytest.raises(BadInput, match=message.replace("[", r"\[")):
        crossover.search({**SETTINGS, **changes}, tmp_path / "runs", **{**RANGE, **options})
    assert not (tmp_path / "runs").exists()


def test_another_search_has_another_directory_and_cannot_use_this_one(searched, tmp_path, monkeypatch):
    path, _ = searched
    before = (path / "manifest.json").read_bytes()
    for changes, message in [
        ({"wd": 0.1}, "wd: got 0.1; accepted: 1.0, as the runs in .* have it; or another directory"),
        ({"lr": 0.02}, "lr: got 0.02; accepted: 0.01"),
        ({"d_model": 8}, "d_model: got 8; accepted: 16"),
        ({"max_epochs": 50}, "max_epochs: got 50; accepted: at least 60, the budget of the runs in"),
    ]:
        with pytest.raises(BadInput, match=message):
            crossover.search({**SETTINGS, **changes}, path, **RANGE)
    assert (path / "manifest.json").read_bytes() == before
    monkeypatch.chdir(tmp_path)

    def stopped_at_once(sweep, path, **options):
        raise Interrupted(path)

    monkeypatch.setattr(crossover.sweeping, "sweep", stopped_at_once)
    names = set()
    for changes in ({}, {"wd": 0.1}, {"lr": 0.02}, {"max_epochs": 50}, {"init_scale": 2.0}, {"seeds": 3}):
        with pytest.raises(Interrupted) as stopped:
            crossover.search({**SETTINGS, **changes}, **RANGE)
        names.add(stopped.value.path)
    assert len(names) == 5  # more seeds extend the same search


def test_a_search_stopped_before_any_run_has_ended_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxgrok.cli.live.Watch", lambda: StopWatch(1))
    flags = "--task addition1 --d-model 16 --n-heads 2 --seeds 1 --low 5 --high 90 --sizes 2 --max-epochs 60 --out runs"
    assert command.main(flags.split()) == 130
    shown = capsys.readouterr()
    assert "The same command resumes from there." in shown.err
    assert "Traceback" not in shown.err
    assert (tmp_path / "runs" / "tables" / "crossover.md").exists()


def test_a_directory_with_unlimited_data_is_refused(tmp_path):
    fields = {name: value for name, value in SETTINGS.items() if name != "max_epochs"}
    path = sweep(
        make_sweep({**fields, "n_train": [5, "unlimited"], "epochs": 2, "eval_every": 1, "seeds": 1}), tmp_path / "runs"
    )
    with pytest.raises(BadInput, match="without unlimited data"):
        crossover.search(SETTINGS, path, **RANGE)


def test_a_part_that_a_run_does_not_test_has_no_crossover(searched, monkeypatch):
    def without_digit_0(record, curves):
        losses = np.array(curves.test_part_loss)
        losses[:, 0] = np.nan if record.number == 1 else losses[:, 0]
        return replace(curves, test_part_loss=losses)

    results = jaxgrok.load(searched[0])
    tables_see(monkeypatch, results, without_digit_0)
    with pytest.raises(BadInput, match=r"digit 0.*run 1 has no test example of it"):
        size_tables.sizes_of(results, "digit 0")
    assert size_tables.sizes_of(results, "digit 1").of_sizes


def test_a_sweep_over_other_things_has_no_crossover(tmp_path):
    path = sweep(
        make_sweep({"arch": "mlp", "p": 5, "d_mlp": 4, "frac": "0.5,0.6", "seeds": 1, "epochs": 2}), tmp_path / "runs"
    )
    with pytest.raises(BadInput, match="n_train alone"):
        size_tables.sizes_of(jaxgrok.load(path))


def test_a_search_whose_runs_do_not_fit_into_memory_is_refused_before_anything_is_written(tmp_path):
    if device_memory(jax.devices()) is None:
        pytest.skip("the machine does not tell its memory")
    with pytest.raises(BadInput, match=r"^d_model: got 100000; accepted: .* GB available"):
        crossover.search({**SETTINGS, "d_model": 100_000}, tmp_path / "runs", **RANGE)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--low 0", "--low"),
        ("--precision 1", "--precision"),
        ("--sizes 1", "--sizes"),
        ("--high 5", "--high"),
        ("--task add", "--task: got 'add'"),
    ],
)
def test_the_command_names_what_it_refuses(monkeypatch, tmp_path, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    task = [] if "--task" in arguments else ["--task", "addition5"]
    assert command.main([*task, *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("crossover.py: error: ")
    assert named in error
    assert not list(tmp_path.iterdir())


def test_a_number_of_sizes_out_of_reason_is_refused(tmp_path):
    with pytest.raises(BadInput, match="from 2 to 1,000"):
        crossover.search({"task": "addition2", "seeds": 1}, tmp_path / "runs", count=2**31 - 1)
    assert list(tmp_path.iterdir()) == []
