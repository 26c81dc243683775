"""The measurement of an accelerator, at toy size, on whatever this machine has: it runs, and its file is complete."""

import json
import subprocess
import sys

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
        (precision, runs) for precision in benchmark_gpu.PRECISIONS for runs in sizes.runs
    ]
    for row in found["steps"]:
        never, some, every = (row[f"ms_per_run_epoch_test_every_{n}"] for n in ("never", 10, 1))
        assert min(never, some, every) > 0
        assert row["share_of_floor"] > 0
        assert 1e-3 * never * row["share_of_floor"] == pytest.approx(row["floor"]["seconds"])
    assert set(found["seconds_of_2_runs_of_100_epochs"]) == {"float32", "tf32"}
    assert [(row["networks"], row["draws"]) for row in found["analysis"]] == [(1, 0), (1, 10), (2, 0), (2, 10)]
    assert {"plain JAX by vmap", "Flax NNX"} <= {row["program"] for row in found["others"]}


def test_a_size_that_does_not_fit_says_so_and_the_others_are_measured(monkeypatch):
    import jax

    from jaxgrok.config import Config

    def full(config, runs, *rest):
        if runs == 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nand more")
        return {"seconds": 1e-9}

    monkeypatch.setattr(benchmark_gpu, "floor_seconds", full)
    config = Config(p=7, d_model=8)
    rows = list(benchmark_gpu.step_rows(config, benchmark_gpu.TOY, 1e9))
    assert [row.get("failed") for row in rows] == [None, "RESOURCE_EXHAUSTED: out of memory"] * 2
    assert "share_of_floor" in rows[0]


@pytest.mark.parametrize("flags", [["--toy"], ["--gpu", "nowhere/gpu.json"]])
def test_flags_that_cannot_be_are_refused(flags, tmp_path):
    found = subprocess.run([*BENCHMARK, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert flags[0] in found.stderr
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir())
