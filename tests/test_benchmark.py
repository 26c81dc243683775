"""The measurement of an accelerator, at toy size, on whatever this machine has: it runs, and its file is complete."""

import json
import subprocess
import sys
from dataclasses import replace

import jax
import pytest

from scripts import benchmark_gpu
from tests.conftest import REPOSITORY

BENCHMARK = [sys.executable, str(REPOSITORY / "scripts" / "benchmark.py")]


def test_the_measurement_of_an_accelerator_is_complete(tmp_path):
    file = tmp_path / "gpu.json"
    subprocess.run([*BENCHMARK, "--gpu", file, "--toy"], check=True, capture_output=True, text=True)
    found = json.loads(file.read_text())
    sizes = benchmark_gpu.TOY
    assert [(row["precision"], row["runs"]) for row in found["steps"]] == [
        (precision, runs) for runs in sizes.runs for precision in benchmark_gpu.PRECISIONS
    ]
    for row in found["steps"]:
        if row["precision"] == "tf32_x3" and jax.default_backend() == "cpu":
            assert "not supported" in row["failed"]
            continue
        never, some, every = (row[f"ms_per_run_epoch_test_every_{n}"] for n in ("never", 10, 1))
        assert min(never, some, every) > 0
        assert row["share_of_floor"] > 0
        assert 1e-3 * never * row["share_of_floor"] == pytest.approx(row["floor"]["seconds"])
    assert set(found["seconds_of_2_runs_of_100_epochs"]) == {"float32", "tf32"}
    assert [(row["networks"], row["draws"]) for row in found["analysis"]] == [(2, 0), (2, 10)]
    assert {"plain JAX by vmap", "Flax NNX"} <= {row["program"] for row in found["others"]}
    assert not found["left_out"]


def test_what_there_is_is_saved_after_each_row_and_a_row_that_fails_says_so(monkeypatch):
    def full():
        yield {"share_of_floor": 0.7}
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")

    rows = [
        benchmark_gpu.Row("steps", {"precision": "float32", "runs": 2}, full),
        benchmark_gpu.Row("analysis", {"networks": 1}, lambda: [{"seconds_per_network": 0.5}]),
    ]
    monkeypatch.setattr(benchmark_gpu, "rows_of", lambda *given: rows)
    saved = []
    benchmark_gpu.measure(benchmark_gpu.TOY, lambda found: saved.append(json.loads(json.dumps(found))))
    first, last = saved[0], saved[-1]
    reason = "RESOURCE_EXHAUSTED: out of memory"
    failed = {"precision": "float32", "runs": 2, "share_of_floor": 0.7, "failed": reason}
    assert (first["steps"], first["analysis"]) == ([failed], [])
    assert (last["steps"], last["analysis"]) == ([failed], [{"networks": 1, "seconds_per_network": 0.5}])
    assert last["seconds_of_2_runs_of_100_epochs"] == {}


def test_rows_for_which_there_is_no_time_are_listed():
    sizes, saved = replace(benchmark_gpu.TOY, seconds=-1), []
    benchmark_gpu.measure(sizes, saved.append)
    assert not saved[-1]["steps"]
    assert {"table": "steps", "precision": "tf32", "runs": 1} in saved[-1]["left_out"]
    assert len(saved[-1]["left_out"]) >= 4 + 2 + 2


@pytest.mark.parametrize("flags", [["--toy"], ["--gpu", "nowhere/gpu.json"]])
def test_flags_that_cannot_be_are_refused(flags, tmp_path):
    found = subprocess.run([*BENCHMARK, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert flags[0] in found.stderr
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir())
