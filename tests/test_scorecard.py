"""The scorecard: claims are whole, measures find what was planted, rules judge as they say, the command resumes."""

import csv
import importlib
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgrok import measures, scorecard
from jaxgrok.cli import reproduce
from jaxgrok.cli import sweep as cli_sweep
from jaxgrok.config import BadInput, Config, Run
from jaxgrok.report import page_data
from jaxgrok.scorecard import Claims, Finding, Mode, Rule, SweepCommand, Verdict, circuits
from jaxgrok.scorecard.claims import MEASURES
from jaxgrok.scorecard.findings import finding_of, number, single
from jaxgrok.store.results import load
from jaxgrok.training.run import make_program

REPOSITORY = Path(__file__).parent.parent
CLAIMS = scorecard.read_claims()


# --- the claims as data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", CLAIMS.claims, ids=lambda claim: claim.name)
def test_a_claim_can_be_measured(claim):
    """Its measure takes its arguments, its sweeps exist, and what it links to is there."""
    inspect.signature(MEASURES[claim.measure]).bind(None, **claim.arguments)
    assert Mode.FULL in claim.sweeps
    assert set(claim.sweeps.values()) <= set(CLAIMS.sweeps)
    bounds = (claim.rule.above, claim.rule.at_least, claim.rule.below, claim.rule.at_most)
    assert any(bound is not None for bound in bounds)
    assert not claim.more or (REPOSITORY / "docs" / "results" / claim.more).exists()
    if MEASURES[claim.measure] in circuits.MEASURES:
        assert all(CLAIMS.sweeps[name].analyze for name in claim.sweeps.values())


@pytest.mark.parametrize("sweep", CLAIMS.sweeps.values(), ids=lambda sweep: sweep.name)
def test_a_sweep_of_the_scorecard_is_a_command(sweep):
    command, *arguments = sweep.arguments
    parser = importlib.import_module(f"jaxgrok.cli.{command}").parser()
    args = vars(parser.parse_args(arguments))
    if command == "sweep" and args["init"] != "torch":
        assert importlib.import_module("jaxgrok.cli.sweep").chosen(args).runs()
    assert CLAIMS.of_sweep(sweep.name)
    modes = {mode for claim in CLAIMS.claims for mode, name in claim.sweeps.items() if name == sweep.name}
    assert len(modes) == 1


@pytest.mark.parametrize(("arch", "name"), [("transformer", "mainline"), ("mlp", "mlp")])
def test_what_the_measures_of_circuits_ask_for_is_measured(arch, name, monkeypatch):
    """Every path that a claim's measure asks for is one of those of `measures.all`."""
    config = Config(p=7, arch=arch, d_model=8, n_heads=2, d_mlp=8)
    asked = set()

    def series(results, *names):
        asked.update(names)
        return iter(())

    monkeypatch.setattr(circuits, "_series", series)
    for claim in CLAIMS.of_sweep(name):
        if MEASURES[claim.measure] in circuits.MEASURES:
            claim.find(None)
    init = jax.eval_shape(make_program(config).init, Run(config, 0, frac=0.5).hyper())
    found = jax.eval_shape(lambda p: measures.measure(config, p, measures.split_of(config, 0.5, 0)), init.params)
    paths = {"/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(found)}
    assert asked
    assert asked <= paths


def test_quick_is_quick():
    used = {claim.sweeps[Mode.QUICK] for claim in CLAIMS.claims if Mode.QUICK in claim.sweeps}
    assert sum(CLAIMS.sweeps[name].minutes for name in used) <= 15
    assert len([claim for claim in CLAIMS.claims if Mode.QUICK in claim.sweeps]) > len(CLAIMS.claims) / 2


# --- rules and texts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "values", "verdict"),
    [
        (Rule(above=2), [3, 4, 5], Verdict.REPRODUCED),
        (Rule(above=2), [2, 2, 2], Verdict.NOT),
        (Rule(at_least=2), [2, 2, 2], Verdict.REPRODUCED),
        (Rule(above=2), [3, 4, 5, 1], Verdict.PARTLY),
        (Rule(above=2), [*[3] * 9, 1], Verdict.REPRODUCED),
        (Rule(above=2), [np.inf, np.inf, 3], Verdict.NOT),  # what was not reached is above no bound
        (Rule(above=2), [np.nan, 3, 4], Verdict.REPRODUCED),  # what is unknown is not counted
        (Rule(above=2), [np.nan, np.nan], Verdict.UNKNOWN),
        (Rule(above=2), [np.nan, np.nan, 3], Verdict.UNKNOWN),  # less than half is known
        (Rule(above=2), [], Verdict.UNKNOWN),
        (Rule(at_least=3, at_most=7), [3, 7, 5], Verdict.REPRODUCED),
        (Rule(at_least=3, below=7), [3, 7, 5, 9], Verdict.PARTLY),
    ],
)
def test_a_rule_judges_as_it_says(rule, values, verdict):
    assert rule.verdict(finding_of(values, [f"seed {i}" for i in range(len(values))])) is verdict


def test_a_rule_in_words():
    assert str(Rule(above=2)) == "above 2"
    assert str(Rule(at_least=350, at_most=1400)) == "at least 350 and at most 1,400"
    found = finding_of([1, 5, 6, np.nan, np.inf], [f"seed {i}" for i in range(5)])
    assert Rule(above=2).count(found) == "2 of 4; not seed 0, seed 4"
    assert Rule(above=0).count(finding_of([1.0] * 3, "abc")) == "3 of 3"
    assert Rule(above=9).count(finding_of(range(6), "abcdef")) == "0 of 6"
    assert Rule(above=9).count(single(3, 20)) == ""
    assert Rule(above=0).count(finding_of([1, np.nan], "ab")) == "1 of 1"


@pytest.mark.parametrize(
    ("finding", "text"),
    [
        (finding_of([3.0], ["seed 0"]), "3, 1 run"),
        (finding_of([1, 2, 4], "abc"), "2 (1 - 4), 3 runs"),
        (finding_of(range(1, 9), "abcdefgh"), "4.5 [1, 8], 8 runs"),
        (finding_of([1, 2, np.nan], "abc"), "1.5 (1 - 2), 3 runs (1 unknown)"),
        (finding_of([1, np.inf, np.inf], "abc"), "not reached (1 - not reached), 3 runs"),
        (finding_of(range(1, 9), "abcdefgh", of="pairs of runs"), "4.5 (1 - 8), 8 pairs of runs"),  # not independent
        (finding_of([np.nan], "a"), "unknown"),
        (finding_of([0.2], "a", of="pairs of runs"), "0.2, 1 pair of runs"),
        (single(596, 21, (438, 659)), "596 [438, 659], 21 runs"),
    ],
)
def test_a_finding_in_words(finding, text):
    assert str(finding) == text


def test_the_interval_of_a_median_covers_it_as_often_as_it_says(rng):
    """95 % of the intervals, or more, as the order statistics allow no exact one: for 9 values 96 %. Of 400 fewer than
    370 would be 3.6 standard deviations less."""
    covered = 0
    for _ in range(400):
        text = str(finding_of(rng.exponential(size=9), "abcdefghi"))
        low, high = (float(x) for x in text.split("[")[1].split("]")[0].split(", "))
        covered += low <= np.log(2) <= high
    assert covered >= 370


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7510, "7,510"),
        (0.0734, "0.0734"),
        (4.7e-8, "4.7e-8"),
        (2e-5, "2e-5"),
        (-3e9, "-3e9"),
        (0, "0"),
        (2, "2"),
        (12.345, "12.3"),
        (np.inf, "not reached"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


# --- the command ------------------------------------------------------------------------------------------------------

TINY = "sweep --p 7 --d-model 8 --n-heads 2 --d-mlp 8 --frac 0.6 --seeds 2 --epochs 30 --lr 0.01"


def claims_of(*sweeps):
    """Claims that are measured on these sweeps, one each."""
    template = CLAIMS.select(["phase_change"])[0]
    claims = [
        replace(template, name=sweep.name, sweeps={Mode.QUICK: sweep.name}, figure="figures/curves.png")
        for sweep in sweeps
    ]
    return Claims(claims, {sweep.name: sweep for sweep in sweeps})


@pytest.fixture
def measured_on(monkeypatch):
    """Have the command know claims about these sweeps alone."""

    def use(*sweeps):
        claims = claims_of(*sweeps)
        for module in ("jaxgrok.scorecard", "jaxgrok.scorecard.card"):
            monkeypatch.setattr(f"{module}.read_claims", lambda: claims)
        return claims

    return use


def test_from_the_command_line(measured_on, tmp_path, capfd):
    """A sweep is trained and analysed, and its page shows its claims; one that fails does not stop the others; what is
    done is not done again."""
    good = SweepCommand("good", TINY, "tiny", 1, analyze=True)
    bad = SweepCommand("bad", f"{TINY} --frac 2", "none", 1)
    measured_on(bad, good)
    out = tmp_path / "out"
    assert reproduce.main(["--quick", "--out", str(out)]) == 1
    shown = capfd.readouterr()
    assert "bad ended with status 2" in shown.out
    assert "--frac: got '2'" in shown.err
    card = (out / "scorecard.md").read_text()
    assert "not yet run (1 minute)" in card
    assert "[figure](good/figures/curves.png)" in card
    assert "[good](good/report.html)" in card
    results = load(out / "good")
    (row,) = scorecard.rows_of(results)
    assert page_data(results)["claims"]["rows"] == [row.cells()]
    assert row.cells()[2] in card
    timings = list(csv.DictReader((out / "good" / "tables" / "timings.csv").read_text().splitlines()))
    assert f"{len(timings)} runs" in row.cells()[2]
    assert (out / "good" / "analysis").is_dir()
    assert "Made by `jaxgrok reproduce --quick`" in card

    measured_on(good)
    before = (out / "good.log").read_bytes()
    assert reproduce.main(["--quick", "--out", str(out)]) == 0
    assert "done" in capfd.readouterr().out
    assert (out / "good.log").read_bytes() == before


def test_findings_of_another_machine_stand_where_nothing_is_trained(measured_on, tmp_path, capsys):
    """They are what was written, and are left out once the claim is measured otherwise."""
    sweep = SweepCommand("far", TINY, "tiny", 1)
    claims = measured_on(sweep)
    finding = Finding(np.array([1.5, np.inf, np.nan]), ("seed 0", "seed 1", "seed 2"), interval=(0.5, np.nan))
    row = scorecard.Row(claims.claims[0], sweep, finding, "jax 1; 1 x gpu")
    path = tmp_path / "scorecard.json"
    scorecard.write_findings(path, [row, replace(row, finding=None)])
    (back,) = scorecard.read_findings(path, {"far": replace(row, finding=None, made_with="")}).values()
    assert back.cells() == row.cells()
    assert back.made_with == row.made_with
    np.testing.assert_array_equal(back.finding.values, finding.values)

    other = replace(row, claim=replace(row.claim, measure="grokking_time"), finding=None)
    assert scorecard.read_findings(path, {"far": other})["far"].finding is None
    other = replace(row, sweep=replace(sweep, command="sweep --p 5"), finding=None)
    assert scorecard.read_findings(path, {"far": other})["far"].finding is None

    assert reproduce.main(["--quick", "--out", str(tmp_path / "out"), "--kept", str(path)]) == 0
    assert row.cells()[2] in (tmp_path / "out" / "scorecard.md").read_text()
    assert [file.name for file in (tmp_path / "out").iterdir() if file.is_dir()] == []
    card = (tmp_path / "out" / "scorecard.md").read_text()
    assert "far (kept)" in card
    assert "--kept scorecard.json" in card
    assert "1 findings of" in capsys.readouterr().out
    arguments = ["--quick", "--out", str(tmp_path / "out"), "--plan"]
    text = path.read_text()
    broken = [text.replace('"names"', '"name"'), text.replace('"interval": [', '"interval": [], "x": [')]
    for bad in ("", "[]", '{"far": 3}', *broken):
        (tmp_path / "bad.json").write_text(bad)
        assert reproduce.main([*arguments, "--kept", str(tmp_path / "bad.json")]) == 2
        assert "--kept: got" in capsys.readouterr().err


def test_a_directory_of_another_command_is_refused(measured_on, tmp_path, capsys):
    """Its runs would be counted with those of the claim."""
    sweep = SweepCommand("good", TINY, "tiny", 1)
    measured_on(sweep)
    assert reproduce.main(["--quick", "--out", str(tmp_path)]) == 0
    runs = len(load(tmp_path / "good").runs)
    measured_on(replace(sweep, command=f"{TINY} --wd 0.5"))
    capsys.readouterr()
    assert reproduce.main(["--quick", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "move it away or delete it" in error
    assert len(load(tmp_path / "good").runs) == runs
    # Nor is it believed any more once somebody has extended it.
    measured_on(sweep)
    assert len(scorecard.rows_of(load(tmp_path / "good"))) == 1
    cli_sweep.main([*shlex.split(TINY)[1:], "--seeds", "3", "--out", str(tmp_path / "good")])
    assert scorecard.rows_of(load(tmp_path / "good")) == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(BadInput, match=r"move it away"):
        scorecard.begin(tmp_path / "other", sweep)


def test_what_has_been_lost_is_trained_and_measured_again(measured_on, tmp_path, capsys):
    sweep = SweepCommand("good", TINY, "tiny", 1, analyze=True)
    claims = measured_on(sweep)
    claims.claims[0] = replace(claims.claims[0], measure="n_keys")
    folder = tmp_path / "good"
    cli_sweep.main([*shlex.split(TINY)[1:], "--out", str(folder)])
    scorecard.finish(folder, sweep)
    (row,) = scorecard.rows_of(load(folder))
    assert row.finding is not None  # no run grokked: a finding without values
    assert row.verdict is Verdict.UNKNOWN
    shutil.rmtree(folder)
    assert reproduce.main(["--quick", "--out", str(tmp_path), "--plan"]) == 0
    assert "to be trained" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sweep": 3}', '{"sweep": "good"}'])
def test_a_note_that_cannot_be_read_is_none(measured_on, tmp_path, content):
    measured_on(SweepCommand("good", TINY, "tiny", 1))
    cli_sweep.main([*shlex.split(TINY)[1:], "--epochs", "2", "--out", str(tmp_path / "good")])
    (tmp_path / "good.json").write_text(content)
    assert scorecard.rows_of(load(tmp_path / "good")) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--quick --only nothing", "--only: got 'nothing'; accepted: small_phase_change phase_change"),
        ("--quick --only ''", "--only: got ''"),
        (
            "--quick --only fifteen_digits",
            "--only: got 'fifteen_digits'; accepted: with --quick, one of phase_change",
        ),
        ("--quick --out file", "--out: got 'file'; accepted: a directory"),
        ("--quick --full", "not allowed with argument"),
        ("", "--quick or --full: got 'neither'; accepted: one of them"),
        ("--quik", "unrecognized arguments: --quik"),
    ],
)
def test_bad_input_is_one_line(arguments, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    try:
        status = reproduce.main(shlex.split(arguments))
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.count("\n") == 1
    assert complaint in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_names_are_checked_before_anything_is_trained():
    with pytest.raises(BadInput, match=r"accepted: .*grokking"):
        CLAIMS.select(["grokking", "groking"])


@pytest.mark.slow
def test_a_stopped_command_passes_the_signal_on_and_resumes(tmp_path):
    command = [sys.executable, "-m", "jaxgrok", "reproduce", "--quick", "--only", "phase_change", "--out", "out"]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "small_data" / "manifest.json").exists():
        assert child.poll() is None
        time.sleep(0.05)
    time.sleep(2)
    child.send_signal(15)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 143, error
    assert "The same command resumes" in error
    assert "Traceback" not in error
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| (reproduced|partly) \(\d of 8", (tmp_path / "out" / "scorecard.md").read_text())


@pytest.mark.slow
def test_the_quick_scorecard_is_written_in_full(tmp_path):
    """Every claim of it has a verdict, and every figure that it names is there."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxgrok", "reproduce", "--quick", "--out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out" / "scorecard.md").read_text()
    assert "not yet run" not in card
    assert "| unknown" not in card
    for claim in CLAIMS.claims:
        if claim.figure and Mode.QUICK in claim.sweeps:
            assert list((tmp_path / "out" / claim.sweeps[Mode.QUICK]).glob(claim.figure)), claim.name


@pytest.mark.parametrize("mode", Mode)
def test_the_scorecards_of_the_results_are_what_was_found(mode, monkeypatch):
    """docs/results/scorecard.md says what scorecard.json holds, by today's rules. After a change of a claim:
    python docs/results/scorecard.py"""
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs" / "results"))
    kept = importlib.import_module("scorecard")
    name = kept.NAMES[mode]
    rows = kept.rows_of(mode, [REPOSITORY / "docs" / "results" / f"{name}.json"])
    assert kept.text_of(mode, rows) == (REPOSITORY / "docs" / "results" / f"{name}.md").read_text()
    assert any(row.finding is not None for row in rows.values())
