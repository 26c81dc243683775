"""Generated command lines and TOML files: the status is 0, 1 or 2, and 2 comes with one line that says why."""

import contextlib
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxgrok import cli, search
from jaxgrok.cli import analyze, crossover, rerun, slingshots
from jaxgrok.cli import sweep as sweep_command
from jaxgrok.config import BadInput
from jaxgrok.nets import weight_files
from jaxgrok.tables import released
from jaxgrok.training import plan, sweep
from jaxgrok.training.grid import FIELDS, NOTES

MODULES = {"sweep": sweep_command, "analyze": analyze, "crossover": crossover, "slingshots": slingshots, "rerun": rerun}
FLAGS = {
    name: [action.option_strings[-1] for action in module.parser()._actions if action.option_strings]
    for name, module in MODULES.items()
}
PRESETS = sorted((Path(__file__).parent.parent / "sweeps").glob("*.toml"))
HUGE = ["1" + "0" * 30, "1e400", "9" * 5000, "2147483647", "1000000", "0:100000", "5:1", "1:" + "9" * 20]
NEAR = ["-1", "0", "nan", "inf", "-inf", "", "\u0663", "0x10", "1_000", "1,,2", "1,1", " 1 ", "1, 2", "--", "x" * 3000]
ODD = ["1\n2", "a\0b", "\x1b[2J", "\ud800", "addition<N>", "addition0", "|", "../..", "=1+1"]
NAMES = ["add", "random", "addition2", "induction", "skip_trigram", "mlp", "attn_only", "torch", "unlimited", "none"]
VALID = ["1", "2", "3", "0.5", "0.1,1", "2:5", "float32", "exact", "sgd", "l1", "quick", "digit 1", "highest"]
PATHS = ["", ".", "/", "nowhere", "bad.npz", "bad.pth", "bad.json", "bad.safetensors", "bad.toml", "a\0b", "y" * 5000]
values = st.sampled_from([*HUGE, *NEAR, *ODD, *NAMES, *VALID, *PATHS]) | st.text(max_size=20)


@st.composite
def command_lines(draw):
    name = draw(st.sampled_from([*MODULES, "sweep", "sweep"]))
    words = [draw(st.sampled_from(PATHS)) for _ in range(draw(st.integers(0, 2)))] if name != "crossover" else []
    if name == "sweep":
        words = [*words[:1], "--plan"]
    if name == "crossover":
        words = ["--task", "addition2"]
    for flag in draw(st.lists(st.sampled_from([*FLAGS[name], "--unknown", "-x"]), max_size=4)):
        # Some values stand apart from their flag, and some are missing.
        form = draw(st.sampled_from(["=", "=", " ", "alone"]))
        value = draw(values)
        words += [f"{flag}={value}"] if form == "=" else [flag, value] if form == " " else [flag]
    return name, words


numbers = st.sampled_from(["1", "-1", "0.5", "inf", "nan", "9" * 30, "1e400", "true", "2020-01-01", "10:00:00", '"1"'])
plain = numbers | st.sampled_from(['"add"', '""', '"a\\nb"', "{a = 1}", "[]", "[[1]]", "[{a = 1}]", '"unlimited"'])
items = plain | st.lists(plain, max_size=3).map(lambda x: "[" + ", ".join(x) + "]")
keys = st.sampled_from([*FIELDS, *NOTES, "unknown", '"a\\nb"', '""'])
lines = st.tuples(keys, items).map(" = ".join) | st.sampled_from(
    ["[wd]", "[[seeds]]", "wd", "=", "\x00", "p = [" * 2000]
)


@st.composite
def sweep_files(draw):
    """Generated lines, or a preset with some of them in place of its own."""
    text = draw(st.sampled_from(["", *(file.read_text() for file in PRESETS)])).splitlines()
    for line in draw(st.lists(lines, max_size=4)):
        at = draw(st.integers(0, len(text)))
        text[at : at + draw(st.integers(0, 1))] = [line]
    return "\n".join(text)


@pytest.fixture
def nothing_trains(tmp_path, monkeypatch):
    """A folder with damaged files, where no sweep trains and no product is timed."""

    def refuse(*args, **options):
        raise BadInput("--out", "a sweep", "nothing, in this test")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "matmul_rate", lambda *args: 1e12)
    monkeypatch.setattr(sweep, "sweep", refuse)
    monkeypatch.setattr(search.sweeping, "sweep", refuse)
    for suffix in ("npz", "pth", "json", "safetensors", "toml"):
        (tmp_path / f"bad.{suffix}").write_bytes(bytes(range(256)))


def check(name: str, words: list[str]) -> None:
    """Run a command, and assert its status and its complaint."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = cli.main([name, *words])
        except SystemExit as stop:
            status = stop.code
    assert status in (0, 1, 2), (words, status)
    if status == 2:
        assert said.getvalue().count("\n") == 1, said.getvalue()
        assert re.match(rf"jaxgrok {name}: error: \S", said.getvalue())
        # It names a flag, a key of a file, or an argument without a flag.
        flags = [word.split("=")[0] for word in words if word.startswith("-")]
        places = ("key ", "file", "director", "required", "unrecognized", "in this test", *filter(None, words))
        assert any(place in said.getvalue() for place in (*flags, *places))


def check_file(text: str) -> None:
    Path("generated.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    check("sweep", ["--plan", "generated.toml"])


def repeated(n: int):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=n, derandomize=True, database=None, deadline=None, suppress_health_check=checks)


@repeated(100)
@given(command_lines())
def test_command_lines(nothing_trains, line):
    check(*line)


@repeated(50)
@given(sweep_files())
def test_sweep_files(nothing_trains, text):
    check_file(text)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".json"])
@repeated(40)
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), max_size=4), st.floats(0.3, 1))
def test_changed_files_are_read_or_refused(tmp_path, suffix, changes, kept):
    path = tmp_path / f"changed{suffix}"
    if suffix == ".json":
        path.write_text('{"a": {"train_at": {"0": 1.5, "10": 1e-3}, "test_at": {"0": 2}}}')
    elif suffix == ".npz":
        np.savez(path, W_in=np.ones((5, 4)), b_in=np.ones(4))
    else:
        weight_files.write(path, {"W_in": np.ones((5, 4)), "b_in": np.ones(4)})
    content = bytearray(path.read_bytes())
    for at, new in changes:
        start = int(at * len(content))
        content[start : start + len(new)] = new
    path.write_bytes(content[: int(kept * len(content))])
    said = ""
    try:
        released.read_released(path, "a") if suffix == ".json" else weight_files.read(path)
    except BadInput as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.slow
@repeated(1000)
@given(command_lines(), sweep_files())
def test_many(nothing_trains, line, text):
    check(*line)
    check_file(text)


@pytest.mark.parametrize(
    "words",
    [
        "sweep --plan --out=--",
        "analyze bad.npz --json=--",
        "analyze bad.npz --task=--",
        "sweep --plan --unknown=1\n2",
        "crossover --task addition2 --sizes 2147483647",
    ],
)
def test_found_by_fuzzing(nothing_trains, capsys, words):
    name, *rest = words.split(" ")
    with contextlib.suppress(SystemExit):
        assert cli.main([name, *rest]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert rest[-1].split("=")[0] in error or rest[-2] in error
    assert sorted(file for file in os.listdir() if not file.startswith("bad.")) == []
