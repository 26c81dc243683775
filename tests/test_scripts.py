"""The commands as a user types them: one clear line for bad input, status 2, nothing written."""

import csv
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import COMPILED_IN_FULL

REPOSITORY = Path(__file__).parent.parent
SWEEP = REPOSITORY / "scripts" / "sweep.py"
TINY = ["--arch", "mlp", "--p", "5", "--d-mlp", "8", "--frac", "0.5", "--seeds", "2", "--epochs", "30", "--lr", "0.01"]


def run(*arguments, cwd, env=None):
    command = [sys.executable, str(SWEEP), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture
def main(monkeypatch, tmp_path):
    """The command in this process, in an empty directory: quick enough for many bad inputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SWEEP.parent))
    import sweep

    return sweep.main


@pytest.mark.parametrize(
    ("arguments", "named", "value"),
    [
        ("--task divide", "--task", "divide"),
        ("--p 1", "--p", "1"),
        ("--p x", "--p", "x"),
        ("--frac 1.2", "--frac", "1.2"),
        ("--frac 0", "--frac", "0"),
        ("--p 2 --frac 0.1", "--frac", "0.1"),
        ("--wd 0.1,,1", "--wd", "0.1,,1"),
        ("--wd ''", "--wd", ""),
        ("--wd=-1", "--wd", "-1"),
        ("--n-heads 3", "--n-heads", "3"),
        ("--seeds 0", "--seeds", "0"),
        ("--epochs many", "--epochs", "many"),
        ("--max-epochs 10", "--max-epochs", "10"),
        ("--epochs 10 --until-settled", "--epochs", "10"),
        ("--preset slow", "--preset", "slow"),
        ("none.toml", "sweep file", "none.toml"),
        ("--batch-runs 0", "--batch-runs", "0"),
        ("--loss exacts", "--loss", "exacts"),
        ("--init nothing.pth", "--init", "nothing.pth"),
        ("--init ''", "--init", "''"),
        (f"--init {'x' * 300}.npz", "--init", "xxx"),
        (f"--init {Path(__file__)}", "--init", ".py"),
        ("--init torch --arch mlp", "--init", "torch"),
    ],
)
def test_bad_input_is_one_line_with_the_flag_the_value_and_what_is_accepted(
    main, capsys, tmp_path, arguments, named, value
):
    assert main(shlex.split(arguments)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert value in error
    assert "accepted: " in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


TASKS = (
    "add subtract multiply x2xyy2 random s<N> a<N> d<N> addition<N> induction skip_trigram parity<K> (N and K from 1 "
    "to 100; of groups N from 3, with at most 2,000 elements, and _conjugate or _xyx for xyx^-1 and xyx), several of "
    "the first joined by +, an expression in x and y, or package.module:Name"
)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        *(
            (f"--task {task}", f"--task: got {task!r}; accepted: {TASKS}")
            for task in ["addition0", "addition", "additionx", "addition101", "sort"]
        ),
        (
            "--task addition1 --n-train 100",
            "--n-train: got 100; accepted: at least 1, and fewer than the task's 100 sequences; or unlimited",
        ),
        (
            "--task skip_trigram --seq-len 3 --n-train 5,10",
            "--n-train: got 10; accepted: at least 1, and fewer than the task's 10 sequences; or unlimited",
        ),
        (
            "--task induction --seq-len 7 --n-tokens 3 --repeat-len 2 --n-train 4",
            "--n-train: got 4; accepted: at least 1, and fewer than the task's 4 sequences; or unlimited",
        ),
        ("--task addition5 --n-train 9999999", "--n-train: got 9999999; accepted: at most 1,000,000; or unlimited"),
        ("--task addition5 --n-test 9999999", "--n-test: got 9999999; accepted: a whole number from 1 to 1,000,000"),
        (
            "--task addition5 --n-train few",
            "--n-train: got 'few'; accepted: whole numbers of train examples >= 1, or unlimited, as a comma list",
        ),
        ("--task addition5 --n-ctx 17", "--n-ctx: got 17; accepted: at least 18, the sequences of task addition5"),
        (
            "--task induction --repeat-len 29",
            "--repeat-len: got 29; accepted: at most 28, a block of a sequence of 85 in 3 repeats",
        ),
        (
            "--task induction --seq-len 7",
            "--repeat-len: got 16; accepted: at most 2, a block of a sequence of 7 in 3 repeats",
        ),
        (
            "--task addition5 --seq-len 20",
            "--seq-len: got 20; accepted: with task induction, skip_trigram or parity<K>",
        ),
        ("--task addition5 --arch mlp", "--arch: got 'mlp'; accepted: transformer or attn_only with task addition5"),
        (
            "--task addition5 --frac 0.3",
            "--frac: got '0.3'; accepted: with a task that lists its examples, as modular ones do; the size of the "
            "others is n_train",
        ),
        ("--task addition5 --p 7", "--p: got '7'; accepted: with a modular task"),
        (
            "--n-train 30",
            "--n-train: got '30'; accepted: with a task that draws its examples, such as addition<N> or induction; "
            "the size of the others is frac",
        ),
        (
            "--task addition5 --n-train 700,20 --batch-size 21",
            "--batch-size: got 21; accepted: at most 20, the train examples",
        ),
        (
            "--n-test 100,200",
            "--n-test: got '100,200'; accepted: with a task that draws its examples, such as addition<N> or induction; "
            "the others test all that they do not train on",
        ),
        (
            "--n-ctx 4",
            "--n-ctx: got 4; accepted: with a task that draws its examples; the others have sequences of one length",
        ),
        (
            "--init torch --init-scale 2",
            "--init-scale: got '2'; accepted: without init, whose weights are taken as they are",
        ),
    ],
)
def test_a_task_that_cannot_be_is_refused_in_one_line(main, capsys, tmp_path, arguments, complaint):
    assert main(shlex.split(arguments)) == 2
    assert capsys.readouterr().err == f"sweep.py: error: {complaint}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_drawn_tasks(main, capsys):
    settings = "--task addition1,skip_trigram --n-train 20,unlimited --arch attn_only --d-model 8 --seeds 2 --plan"
    assert main(settings.split()) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = [row[:5] + row[7:8] for row in rows if row and row[0] in ("addition1", "skip_trigram")]
    lengths = [("20", "40,000"), ("unlimited", "6,000")]
    expected = [
        [task, "-", "attn_only", n, "2", epochs] for task in ("addition1", "skip_trigram") for n, epochs in lengths
    ]
    assert found == expected


def test_an_unknown_flag_is_refused(main, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--epoch", "3"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "--epoch;" in error
    assert error.count("\n") == 1


def test_a_sweep_from_the_command_line(main, capsys, tmp_path):
    done = run(*TINY, "--wd", "0.1,1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "> 30 (0/2)" in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    made = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "checkpoints" not in path.parts
    }
    figures = {"figures/survival.png", "figures/curves-wd=0.1.png", "figures/curves-wd=1.png"}
    tables = {"tables/timings.csv", "tables/summary.csv", "tables/summary.md"}
    assert made == {
        "config.json",
        "manifest.json",
        "metrics.npz",
        ".lock",
        ".lock-summary",
        "report.html",
        *figures,
        *tables,
    }
    # The same command finds its own directory, and another of the same configuration extends it.
    assert main([*TINY, "--wd", "0.1,1,2"]) == 0
    assert "of which 120 are done" in capsys.readouterr().err
    assert len((folder / "tables" / "timings.csv").read_text().splitlines()) == 1 + 6
    assert main([*TINY, "--d-mlp", "9", "--out", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "--d-mlp" in error
    assert "8" in error


def test_an_interrupted_command_says_so_and_shows_what_there_is(tmp_path):
    """Ctrl-C while the first of two cells trains: status 130, a table of what has begun, and no traceback."""
    arguments = [*TINY, "--frac", "0.5,0.6", "--epochs", "1000000", "--checkpoint-every", "100000", "--out", "runs"]
    child = subprocess.Popen(
        [sys.executable, str(SWEEP), *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "runs" / "manifest.json").exists():
        assert child.poll() is None
        time.sleep(0.05)
    time.sleep(8)
    child.send_signal(signal.SIGINT)
    out, error = child.communicate(timeout=120)
    assert child.returncode == 130, error
    assert "Traceback" not in error
    assert "resumes from there" in error
    assert "2 of 4 runs have not begun" in out
    assert (tmp_path / "runs" / "figures" / "curves-frac=0.5.png").exists()


def test_a_plan_costs_nothing_and_writes_nothing(main, capsys, tmp_path):
    assert main(["--seeds", "32", "--wd", "0.1,1.0", "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "64 runs" in shown
    assert "40,000" in shown
    assert "150,000" in shown
    assert list(tmp_path.iterdir()) == []


def test_version(main, capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert re.fullmatch(r"jaxgrok \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_help_names_every_flag_of_the_contract(main, capsys):
    with pytest.raises(SystemExit):
        main(["--help-all"])
    text = capsys.readouterr().out
    flags = (
        "seeds wd frac lr split-seed task p arch n-layers n-heads d-model d-mlp act epochs "
        "until-settled max-epochs loss dtype matmul-precision out plan checkpoint-every eval-every "
        "batch-runs preset n-train init-scale seq-len repeat-len n-repeats n-tokens n-test n-ctx "
        "residual-factor optimizer regulariser dropout batch-size b1 b2"
    )
    for flag in flags.split():
        assert f"--{flag}" in text


QUICK_SECONDS = 180


@pytest.mark.slow
def test_the_quick_preset_groks_and_settles_while_one_waits(tmp_path):
    """What README's first command promises, imports and compilation included, on two cores with no other load."""
    start = time.monotonic()
    done = run("--preset", "quick", cwd=tmp_path, env=COMPILED_IN_FULL)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < QUICK_SECONDS
    assert "unknown" not in done.stdout.split("Times are in epochs")[0]
    (folder,) = (tmp_path / "runs").iterdir()
    rows = list(csv.DictReader((folder / "tables" / "summary.csv").read_text().splitlines()))
    assert len(rows) == 2
    for row in rows:
        assert row["grokked"] == row["settled"] == row["runs"] == "3"
        assert row["width_median"]
        assert float(row["delay_median"]) > 3 * float(row["memorised_median"])
