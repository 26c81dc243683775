"""The heads of every checkpoint of a sweep, through real files and the command."""

import csv
import json
import shutil

import numpy as np
import pytest

import jaxgrok
from jaxgrok import figures
from jaxgrok.config import Config
from jaxgrok.measures import checkpoints as analysis
from jaxgrok.measures import heads, subjects
from jaxgrok.nets import interop
from jaxgrok.tables import heads as head_tables
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.sweep import sweep
from tests.conftest import REPOSITORY
from tests.on_disk import seal_every_checkpoint
from tests.test_analysis import Count, damage, epochs_of, versions
from tests.test_figures import words
from tests.test_heads import SHAPES, SMALL, as_numpy, curves_of, drawn, run_heads

SWEEP = {
    "task": "induction",
    "seq_len": 16,
    "repeat_len": 4,
    "n_tokens": 12,
    "d_model": 16,
    "n_heads": 2,
    "batch_size": 8,
    "n_test": 16,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    settings = {**SWEEP, "seeds": 2, "epochs": 10, "checkpoint_every": 5}
    with pytest.MonkeyPatch.context() as patch:
        seal_every_checkpoint(patch)
        return sweep(make_sweep(settings), tmp_path_factory.mktemp("trained") / "runs")


@pytest.fixture(scope="module")
def analysed(trained, tmp_path_factory):
    path = shutil.copytree(trained, tmp_path_factory.mktemp("analysed") / "runs")
    watch = Count()
    analysis.analyze(path, watch=watch)
    n = len(epochs_of(jaxgrok.load(path)))
    assert (watch.total, watch.measured, watch.found) == (2 * n, 2 * n, 0)
    return path


def test_every_checkpoint_has_the_scores_of_its_network(analysed):
    results = jaxgrok.load(analysed)
    config = subjects.config_for_analysis(results.runs[0].config)
    series = results.measures(seed=1)
    assert list(series["epoch"]) == epochs_of(results, 1)
    for i in (0, -1):
        alone = subjects.flatten(
            heads.scores(config, results.params(int(series["epoch"][i]), seed=1), *heads.sequences(config))
        )
        for name, x in alone.items():
            here = series
            for part in name.split("/"):
                here = here[part]
            np.testing.assert_array_equal(here[i], x, err_msg=name)


def test_an_interrupted_analysis_resumes(trained, analysed, tmp_path):
    path = shutil.copytree(trained, tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        analysis.analyze(path, watch=Count(limit=3))
    watch = Count()
    analysis.analyze(path, watch=watch)
    assert (watch.measured, watch.found) == (watch.total - 3, 3)
    for (_, _, one), (_, _, other) in zip(
        jaxgrok.load(path).analysed(), jaxgrok.load(analysed).analysed(), strict=True
    ):
        for name in other:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_heads_have_no_controls_for_which_they_would_be_measured_again(analysed, tmp_path):
    path = shutil.copytree(analysed, tmp_path / "runs")
    watch = Count()
    analysis.analyze(path, all_controls=True, watch=watch)
    assert (watch.measured, watch.found) == (0, watch.total)


def test_heads_of_another_schema_are_measured_again(analysed, tmp_path, monkeypatch):
    path = shutil.copytree(analysed, tmp_path / "runs")
    monkeypatch.setattr(heads, "SCHEMA", heads.SCHEMA + 1)
    watch = Count()
    analysis.analyze(path, watch=watch)
    assert (watch.measured, watch.found) == (watch.total, 0)
    assert {len(of_run) for of_run in versions(path).values()} == {1}


def test_heads_under_other_names_are_measured_again(analysed, tmp_path):
    path = shutil.copytree(analysed, tmp_path / "runs")
    files = jaxgrok.load(path).files
    rows = files.load_measures(0, 5)
    del rows["same_token"]
    files.save_measures(0, 5, rows)
    watch = Count()
    analysis.analyze(path, watch=watch)
    assert (watch.measured, watch.found) == (2, watch.total - 2)
    assert {len(of_run) for of_run in versions(path).values()} == {1}


def test_a_damaged_last_step_is_named(analysed, tmp_path):
    path = shutil.copytree(analysed, tmp_path / "runs")
    shutil.rmtree(path / "analysis")
    damage(path, 10)
    line, more = analysis.analyze(path).skipped
    assert "the last checkpoint of runs 0 1, is damaged (" in line
    assert line.endswith("): that of epoch 5 counts as the last")
    assert more.endswith("2 of its networks are not measured")


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.fixture
def main(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import analyze

    return analyze.main


def test_a_directory_from_the_command_line(main, capsys, tmp_path, analysed):
    path = shutil.copytree(analysed, tmp_path / "runs")
    assert main([str(path)]) == 0
    said = capsys.readouterr().out
    assert "best induction head: score" in said
    assert "seed 1, epoch 10" in said
    assert "stages" not in said.lower()
    drawn = {str(file.relative_to(path / "figures")) for file in (path / "figures").rglob("*.png")}
    ours = {"heads.png", "heads-over-training-seed=0.png", "circuits-seed=0/head-patterns.png"}
    assert ours <= drawn
    assert not {file for file in drawn if "key" in file or "gini" in file}
    assert not (path / "tables" / "networks.csv").exists()
    results = jaxgrok.load(path)
    rows = rows_of(path / "tables" / "heads.csv")
    series = results.measures(seed=1)
    mine = [row for row in rows if (row["seed"], row["layer"], row["head"]) == ("1", "1", "0")]
    assert [int(row["epoch"]) for row in mine] == list(series["epoch"])
    assert len(rows) == 2 * 4 * len(series["epoch"])
    for column, values in {
        "induction": series["induction"][:, 1, 0],
        "induction_by_copy_1": series["induction_by_copy"][:, 1, 0, 1],
        "previous_token_by_block_2": series["previous_token_by_block"][:, 1, 0, 2],
        "chance_same_token": series["chance"]["same_token"][:, 1],
        "loss": series["loss"],
        "loss_without": series["loss_without"][:, 1, 0],
        "induction_without": series["induction_without"][:, 1, 0],
    }.items():
        np.testing.assert_allclose([float(row[column]) for row in mine], values, rtol=1e-6, err_msg=column)
    assert {row["previous_token_by_block_0"] for row in mine} == {""}
    text = (path / "tables" / "heads.md").read_text()
    assert "| seed 1, epoch 10 | 1.0 |" in text
    assert f"above {heads.THRESHOLD}" in text


def test_one_network_of_a_run_and_of_a_file(main, capsys, tmp_path, analysed):
    arguments = [str(analysed), "--seed", "1", "--json", "run.json", "--export", "net.npz", "--figures", "drawn"]
    assert main(arguments) == 0
    sizes = ["--seq-len", "16", "--repeat-len", "4", "--n-tokens", "12"]
    assert main(["net.npz", "--task", "induction", *sizes, "--json", "file.json"]) == 0
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("run.json", "file.json"))
    assert first.pop("network") == {"run": 1, "epoch": 10}
    assert second.pop("network") == {}
    assert first == second
    series = jaxgrok.load(analysed).measures(seed=1)
    np.testing.assert_allclose(first["induction"], series["induction"][-1], rtol=1e-6)
    assert first["previous_token_by_block"][1][0][0] is None
    assert (tmp_path / "drawn" / "head-patterns.png").exists()
    assert "induction without" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--task induction --frac 0.3", "--frac: got 0.3"),
        ("--task induction --residual-factor x", "--residual-factor: got 'x'"),
        ("--task induction --residual-factor 1,2", "--residual-factor: got '1,2'"),
        ("--task induction --seq-len 16 --repeat-len 9", "--repeat-len: got 9"),
    ],
)
def test_bad_input_is_one_line(main, capsys, tmp_path, arguments, said):
    config = subjects.config_for_analysis(Config(**{**SHAPES, "n_layers": 2, "d_model": 8, "dtype": "float32"}))
    interop.save(tmp_path / "net.npz", config, drawn(config))
    assert main(["net.npz", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_a_task_with_nothing_to_measure_is_refused(main, capsys, tmp_path):
    path = sweep(
        make_sweep({"task": "skip_trigram", "d_model": 8, "n_heads": 2, "seeds": 1, "epochs": 2, "n_test": 8}),
        tmp_path / "runs",
    )
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "task skip_trigram" in error
    assert "induction, a task on a group, or one operation modulo p" in error
    assert not (path / "analysis").exists()
    assert main([str(path), "--seed", "0", "--export", "net.npz"]) == 0
    assert main([str(path), "--seed", "0", "--json", "net.json"]) == 2


@pytest.mark.slow
def test_a_mixed_sweep_is_measured_as_far_as_it_goes(tmp_path, monkeypatch):
    keys = np.array([True, False])
    monkeypatch.setattr(analysis.measures, "find_keys", lambda config, params: keys)
    monkeypatch.setattr(
        analysis.measures,
        "all",
        lambda *_: {"key_frequencies": {"keys": keys}, "restricted_loss": {"all": np.float32(1)}},
    )
    sizes = {"p": 5, "d_model": 8, "n_heads": 2, "d_mlp": 6, "n_test": 8, "n_layers": 1, "arch": "transformer"}
    path = sweep(
        make_sweep({"task": ["add", "addition1", "induction"], **sizes, "seeds": 1, "epochs": 1}), tmp_path / "runs"
    )
    results = analysis.analyze(path).results
    (said,) = subjects.left_out(results)
    assert said.startswith("left out: 1 of 3 runs, task addition1; ")
    head_tables.write_head_tables(results)
    assert {row["task"] for row in rows_of(path / "tables" / "heads.csv")} == {"induction"}
    assert [cell.config.task for cell in subjects.of_kind(subjects.CIRCUITS, results.cells)] == ["add"]
    assert results.has_circuit_events
    (name,) = {cell.name for cell in subjects.of_kind(subjects.HEADS, results.cells)}
    assert f"## {name}" in (path / "tables" / "heads.md").read_text()


def test_modular_networks_that_the_measures_do_not_know_are_left_out():
    assert subjects.kind_of(Config()) == subjects.kind_of(Config(arch="mlp")) == subjects.CIRCUITS
    assert subjects.kind_of(SMALL) == subjects.HEADS
    for config in (
        Config(arch="attn_only"),
        Config(residual_factor=2.0),
        Config(task="addition5"),
        Config(task="skip_trigram"),
    ):
        assert subjects.kind_of(config) is None


def test_a_diverged_run_has_tables_and_figures():
    run = run_heads()
    run.m.update({name: np.full_like(run.m[name], np.nan) for name in (*heads.SCORES, *head_tables.WITHOUT, "loss")})
    for name in heads.SCORES:
        run.series[name][-1] = np.nan
    assert dict(head_tables.medians_table([run])[1])["best induction head: score"] == "-"
    assert "none" in head_tables.runs_table([run])[1][0][1]
    assert words(figures.heads_over_training_figure(run, curves_of(run)))
    assert words(figures.heads_of_runs_figure([run]))


def test_the_released_network_copies_from_the_first_copy(shared):
    file = shared / "reference/published/induction_head_infinite.pth"
    config, params, _ = interop.load(file, task="induction", residual_factor=2.0)
    m = as_numpy(heads.scores(config, params, *heads.sequences(config, 256)))
    previous, induction = heads.kinds(m).values()
    assert list(zip(*np.nonzero(previous.share > heads.THRESHOLD))) == [(0, 2)]
    assert list(zip(*np.nonzero(induction.share > heads.THRESHOLD))) == [(1, 1), (1, 2), (1, 3)]
    assert previous.place[0, 2] == 0
    assert previous.score[0, 2] > 0.8
    assert (m["induction_by_copy"][1, 1:, 0] > 0.6).all()
    assert (m["induction_by_copy"][1, 1:, 1] < 0.01).all()
    assert m["loss"] < 0.4 < 4.5 < m["loss_without"][0, 2]
    assert m["induction_without"][0, 2] < 0.05
