"""The package at its door: the entry point `jaxgrok`, what Tab shows, and the live line."""

import importlib
import io
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import jaxgrok
from jaxgrok import cli
from jaxgrok.cli import live
from jaxgrok.cli import sweep as sweep_command
from jaxgrok.cli.live import SweepProgress, Watch
from jaxgrok.store.curves import SweepCurves
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.sweep import prepare, sweep
from tests.on_disk import seal_every_checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = {"arch": "mlp", "p": 5, "d_mlp": 4, "frac": 0.5, "seeds": 2, "epochs": 20, "eval_every": 5}

# --- the public names -------------------------------------------------------------------------------------------------


def test_dir_shows_the_public_names_and_each_is_there():
    assert dir(jaxgrok) == sorted(jaxgrok.__all__)
    for name in jaxgrok.__all__:
        assert getattr(jaxgrok, name) is not None
    with pytest.raises(AttributeError, match="module 'jaxgrok' has no attribute 'nothing'"):
        jaxgrok.nothing  # noqa: B018


def test_the_public_modules_can_be_imported_from_the_package():
    from jaxgrok import figures, fourier, interop, measures, tables

    names = [module.__name__ for module in (figures, fourier, interop, measures, tables)]
    expected = ["figures", "measures.fourier", "nets.interop", "measures", "tables"]
    assert names == [f"jaxgrok.{name}" for name in expected]


def test_a_type_checker_sees_every_public_name():
    text = (REPOSITORY / "jaxgrok" / "__init__.py").read_text()
    for_types = text.split("if TYPE_CHECKING:")[1].split("\n\n")[0].replace(",", " ").split()
    assert set(jaxgrok.__all__) - {"__version__"} <= set(for_types)


# --- the entry point --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_entry_point_lists_its_commands(capsys, arguments):
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    for name, what in cli.COMMANDS.items():
        assert f"  {name} " in shown
        assert what in shown


def test_an_unknown_command_is_refused_in_one_line(capsys):
    assert cli.main(["train", "--seeds", "3"]) == 2
    error = capsys.readouterr().err
    accepted = "sweep analyze report reproduce crossover slingshots rerun"
    assert error == f"jaxgrok: error: command: got 'train'; accepted: {accepted}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself_under_the_name_it_was_called_by(capsys, name):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: jaxgrok {name} ")
    assert f"  jaxgrok {name} " in shown  # its examples
    assert f"{name}.py" not in shown


def test_errors_name_the_command_as_it_was_called(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "--p", "1"]) == 2
    assert capsys.readouterr().err.startswith("jaxgrok sweep: error: --p: got 1; accepted: ")
    with pytest.raises(SystemExit):
        cli.main(["analyze", "--nothing"])
    assert capsys.readouterr().err.startswith("jaxgrok analyze: error: ")


HUGE = "9" * 20


@pytest.mark.parametrize(
    "words",
    [
        *(
            f"sweep {flag} {HUGE}"
            for flag in ("--batch-runs", "--seeds", "--epochs", "--eval-every", "--split-seed", "--p")
        ),
        *(
            f"sweep {flag} {HUGE}"
            for flag in ("--d-model", "--n-layers", "--train-every", "--checkpoint-every", "--n-heads")
        ),
        f"sweep --seeds {'9' * 5000}",
        f"sweep --wd {'9' * 400}",
        f"sweep --task addition5 --batch-size {HUGE}",
        f"sweep --task addition5 --n-train {HUGE}",
        *(f"analyze . {flag} {HUGE} --json out.json" for flag in ("--run", "--epoch", "--seed")),
        *(
            f"crossover --task addition5 {flag} {HUGE}"
            for flag in ("--low", "--high", "--sizes", "--batch-runs", "--seeds")
        ),
        "crossover --task addition5 --precision inf",
    ],
)
def test_numbers_out_of_reason_are_refused_in_one_line(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    command, *rest = words.split()
    assert cli.main([command, *rest]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "accepted: " in error
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_flag_is_refused_before_jax_is_imported():
    code = "import sys; from jaxgrok.cli import main\ntry: main(['sweep', '--epoch', '3'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit('jax' in sys.modules)"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "unrecognized arguments: --epoch; --help-all lists" in done.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_rare_flags_are_explained_under_help_all_alone(capsys, name):
    p = importlib.import_module(f"jaxgrok.cli.{name}").parser()
    flags = {action.dest: action.option_strings[-1] for action in p._actions if action.option_strings}
    assert set(p.rare) <= set(flags)
    assert ("help_all" in flags) == bool(p.rare)

    def shown(flag):
        with pytest.raises(SystemExit) as stop:
            cli.main([name, flag])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        return {field for field, flag in flags.items() if re.search(rf"{flag}(?![-\w])", text)}

    assert shown("--help") == set(flags) - set(p.rare)
    if p.rare:
        assert shown("--help-all") == set(flags)
        # What it is for: a help that is a third shorter.
        assert len(p.format_help().splitlines()) < 0.7 * len(p.format_help_all().splitlines())


def test_presets_are_found_in_the_checkout_and_in_an_installed_package(tmp_path, monkeypatch):
    assert sweep_command.sweeps_dir() == REPOSITORY / "sweeps"
    installed = tmp_path / "jaxgrok"
    (installed / "sweeps").mkdir(parents=True)
    (installed / "sweeps" / "mine.toml").touch()
    monkeypatch.setattr(sweep_command, "__file__", str(installed / "cli" / "sweep.py"))
    assert sweep_command.presets() == ["mine"]


@pytest.mark.parametrize("file", sorted((REPOSITORY / "sweeps").glob("*.toml")), ids=lambda file: file.stem)
def test_every_preset_says_what_it_asks_costs_and_expects(file):
    settings = tomllib.loads(file.read_text())
    assert settings["question"].endswith(("?", "."))
    assert settings["cost"].endswith(".")
    assert settings["expect"].endswith((".", ")"))


# --- the live line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when a test says so."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def __getattr__(self, name):
            import time

            return getattr(time, name)

    made = Clock()
    monkeypatch.setattr(live, "time", made)
    return made


@pytest.fixture
def plan(tmp_path):
    return prepare(make_sweep(TINY), tmp_path / "runs")


@pytest.fixture
def trained():
    """How far the plan's two runs have come. `train(run, epoch, accuracy)` sets it."""

    class Standing(SweepCurves):
        def timing(self, run):
            """Neither run has ended."""

    curves = Standing(2, 20, 5, 1)

    def train(run, epoch, accuracy=0.0):
        curves.last_epoch[run] = epoch
        for curve in (curves.train_acc, curves.test_acc, curves.test_loss):
            curve[run, : np.searchsorted(curves.epoch_eval, epoch)] = accuracy

    return curves, train


def test_compiling_is_said_and_left_out_of_the_rate(clock, plan, trained):
    curves, train = trained
    shown = io.StringIO()
    with Watch(shown) as watch:
        watch.every = 1.0
        watch.started(curves, plan)
        clock.now += 100  # initial weights are drawn
        watch.compiling()
        clock.now += 62
        watch.compiled()
        train([0, 1], 5)
        clock.now += 1
        watch.advanced(curves, plan, 10)  # the interval that compiled: no rate is known yet
        train([0, 1], 10)
        clock.now += 1
        watch.advanced(curves, plan, 10)
    lines = shown.getvalue().splitlines()
    assert lines[2:] == [
        "compiling",
        "compiled in 62 s",
        "20 of 40 run-epochs, 5.0 epochs/s, 0:00:04 left, memorised 0, grokked 0 of 2",
    ]


def test_a_later_compilation_is_left_out_too(clock, plan, trained):
    curves, train = trained
    shown = io.StringIO()
    with Watch(shown) as watch:
        watch.every = 0
        watch.started(curves, plan)
        for epoch in (5, 10):
            watch.compiling()
            clock.now += 30
            watch.compiled()
            train([0, 1], epoch)
            watch.advanced(curves, plan, 10)
            clock.now += 2
            train([0, 1], epoch + 2)
            watch.advanced(curves, plan, 4)
    last = shown.getvalue().splitlines()[-1]
    assert last.startswith("24 of 40 run-epochs, 2.0 epochs/s, 0:00:08 left")


def test_a_run_that_has_not_trained_on_is_not_examined_again(plan, trained, monkeypatch):
    curves, train = trained
    progress = SweepProgress(curves, plan)
    examined = []
    examine = progress._examine
    monkeypatch.setattr(progress, "_examine", lambda number: (examined.append(number), examine(number)))
    train(0, 10, 1.0)
    assert progress.arrived() == "memorised 1, grokked 1 of 2"
    assert examined == [0]
    assert progress.arrived() == "memorised 1, grokked 1 of 2"
    assert examined == [0]
    train(1, 10, 0.5)
    assert progress.arrived() == "memorised 1, grokked 1 of 2"
    assert examined == [0, 1]
    train(0, 4, 0.0)  # rewound, as when a batch resumes from an older state
    assert progress.arrived() == "memorised 0, grokked 0 of 2"
    assert examined == [0, 1, 0]


def test_epochs_left_count_runs_that_are_asked_for_and_have_not_ended(plan, trained):
    curves, train = trained
    progress = SweepProgress(curves, plan)
    assert (progress.done(), progress.left()) == (0, 40)
    train(0, 15)
    assert (progress.done(), progress.left()) == (15, 25)
    curves.ended[1] = True
    assert (progress.done(), progress.left()) == (15, 5)


def test_epochs_done_are_of_the_runs_that_are_asked_for(tmp_path, trained):
    """The others of the directory are no part of this command."""
    curves, train = trained
    plan = prepare(make_sweep(TINY), tmp_path / "runs", batch_runs=1)
    smaller = replace(plan, planned={number: replace(of, asked=number == 0) for number, of in plan.planned.items()})
    progress = SweepProgress(curves, smaller)
    train(0, 10)
    train(1, 20)
    assert (progress.done(), progress.left()) == (10, 10)


@pytest.mark.parametrize(
    ("seconds", "settings", "said"),
    [
        (3000, {}, None),
        (4.04 * 3600, {}, "this will take about 4.0 hours on this machine. --until-settled, "),
        (1.4e6, {}, "this will take about 389 hours on this machine. --until-settled, "),
        (7200, {"until_settled": True}, "this will take at most about 2.0 hours on this machine; "),
    ],
)
def test_a_long_sweep_says_so_before_it_starts(tmp_path, monkeypatch, trained, seconds, settings, said):
    fields = {name: value for name, value in TINY.items() if name != "epochs"}
    length = {"max_epochs": 20} if settings else {"epochs": 20}
    plan = prepare(make_sweep({**fields, **length, **settings}), tmp_path / "runs")

    class Cost:
        pass

    cost = Cost()
    cost.seconds, cost.disk, cost.files = seconds, 1e6, 30
    monkeypatch.setattr(live, "describe", lambda plan: [cost])
    shown = io.StringIO()
    with Watch(shown) as watch:
        watch.started(trained[0], plan)
    lines = shown.getvalue().splitlines()
    assert len(lines) == (2 if said is None else 3)
    assert said is None or lines[2].startswith(said)


def test_a_sweep_shows_that_it_compiles(tmp_path):
    shown = io.StringIO()
    with Watch(shown) as watch:
        watch.every = 0
        path = sweep(make_sweep({**TINY, "d_mlp": 7}), tmp_path / "runs", watch=watch)
    lines = shown.getvalue().splitlines()
    assert lines[0] == "2 runs in 1 batch, 40 run-epochs"
    assert lines[2] == "compiling"
    assert lines[3].startswith("compiled in ")
    assert lines[-1].startswith("40 of 40 run-epochs, ")
    assert [record.last_epoch for record in jaxgrok.load(path).runs] == [20, 20]


# --- directories that cannot be written -------------------------------------------------------------------------------


@pytest.fixture
def unwritable(tmp_path):
    """A sweep whose `tables` and `figures` are files, so that nothing can be written into them, even by root."""
    path = sweep(make_sweep({**TINY, "task": "add", "seeds": 1}), tmp_path / "runs")
    for name in ("tables", "figures"):
        (path / name).write_text("in the way")
    return path


def test_tables_of_an_unwritable_directory_go_where_the_flag_says(unwritable, tmp_path, capsys):
    assert cli.main(["slingshots", str(unwritable)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--tables DIR" in error
    taken = unwritable / "figures"
    assert cli.main(["slingshots", str(unwritable), "--tables", str(taken)]) == 2
    assert capsys.readouterr().err.startswith(f"jaxgrok slingshots: error: --tables: got '{taken}'; accepted: ")
    assert cli.main(["slingshots", str(unwritable), "--tables", str(tmp_path / "made")]) == 0
    assert {file.name for file in (tmp_path / "made").iterdir()} == {"slingshots.csv", "slingshots.md"}


def test_an_analysis_of_an_unwritable_directory(unwritable, tmp_path, capsys):
    assert cli.main(["analyze", str(unwritable)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("jaxgrok analyze: error: tables directory: got ")
    assert "--tables DIR" in error
    assert cli.main(["analyze", str(unwritable), "--tables", str(tmp_path / "made")]) == 0
    assert f"tables, figures: {tmp_path / 'made'}" in capsys.readouterr().out
    made = {file.name for file in (tmp_path / "made").iterdir()}
    assert {"timings.csv", "summary.md", "measures.csv", "curves.png", "losses.png"} <= made
    assert (unwritable / "tables").read_text() == "in the way"


def test_a_skipped_step_is_printed_and_changes_the_exit_status(tmp_path, capsys, monkeypatch):
    seal_every_checkpoint(monkeypatch)
    path = sweep(make_sweep({**TINY, "task": "add", "seeds": 1}), tmp_path / "runs")
    damaged = path / "checkpoints" / "0000" / "10"
    for file in damaged.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert cli.main(["analyze", str(path)]) == 1
    assert f"skipped: {damaged}" in capsys.readouterr().out
