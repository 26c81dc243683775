"""Sweeps that start from given weights."""

import shutil

import jax
import numpy as np
import pytest

import jaxgrok
from jaxgrok.config import BadInput, Config
from jaxgrok.nets import interop
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.sweep import sweep
from tests.test_interop import params_of

GIVEN = {"p": 7, "d_model": 8, "n_heads": 2, "d_mlp": 5, "frac": 0.5, "seeds": 2, "epochs": 4, "eval_every": 2}
GIVEN_CONFIG = Config(p=7, d_model=8, n_heads=2, d_mlp=5)


def weights_file(folder, seed=0, config=GIVEN_CONFIG):
    """A file weights.npz with a network of this config, and its parameters."""
    folder.mkdir(exist_ok=True)
    params = params_of(config, seed)
    interop.save(folder / "weights.npz", config, params)
    return folder / "weights.npz", params


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A sweep of two seeds from one file: its directory, the file and the file's parameters."""
    folder = tmp_path_factory.mktemp("given")
    file, params = weights_file(folder)
    return sweep(make_sweep({**GIVEN, "init": file}), folder / "runs", batch_runs=2), file, params


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_every_run_starts_from_the_weights_of_a_file(given, tmp_path):
    path, file, params = given
    shutil.copytree(path, tmp_path / "runs")
    # The same file at another path resumes the sweep, and adds seeds to it.
    elsewhere = shutil.copy(file, tmp_path)
    results = jaxgrok.load(sweep(make_sweep({**GIVEN, "seeds": 4, "init": elsewhere}), tmp_path / "runs", batch_runs=2))
    for seed in range(4):
        assert_same(results.params(0, seed=seed), params)
        train_loss = results.curves(seed=seed).train_loss
        assert train_loss[-1] != train_loss[0]


def test_every_run_starts_from_what_torch_draws_for_its_seed(tmp_path):
    pytest.importorskip("torch")
    results = jaxgrok.load(sweep(make_sweep({**GIVEN, "init": "torch"}), tmp_path / "runs", batch_runs=2))
    for seed in range(2):
        assert_same(results.params(0, seed=seed), interop.draw_with_torch(GIVEN_CONFIG, seed))


@pytest.mark.parametrize("other", ["a file of the same name", "torch", None])
def test_a_sweep_from_given_weights_is_extended_only_with_the_same_weights(given, tmp_path, other):
    if other == "torch":
        pytest.importorskip("torch")
    path, _, _ = given
    init = weights_file(tmp_path / "other", seed=1)[0] if other == "a file of the same name" else other
    before = {entry: entry.stat().st_mtime_ns for entry in path.rglob("*")}
    settings = {**GIVEN, "seeds": 3, "init": init}
    with pytest.raises(BadInput, match="or another --out") as caught:
        sweep(make_sweep({name: value for name, value in settings.items() if value is not None}), path)
    assert caught.value.name == "init"
    assert "weights.npz" in caught.value.accepted
    assert {entry: entry.stat().st_mtime_ns for entry in path.rglob("*")} == before


def test_a_file_that_changed_in_the_meantime_is_refused(given, tmp_path):
    path, file, _ = given
    shutil.copytree(path, tmp_path / "runs")
    file = shutil.copy(file, tmp_path)
    sweep(make_sweep({**GIVEN, "init": file}), tmp_path / "runs")
    weights_file(tmp_path, seed=1)
    with pytest.raises(BadInput, match="init"):
        sweep(make_sweep({**GIVEN, "init": file}), tmp_path / "runs")


@pytest.mark.parametrize("change", [{"p": 5}, {"d_model": 4}, {"arch": "mlp"}, {"arch": "mlp", "init": "torch"}])
def test_weights_that_do_not_fit_are_refused_and_nothing_is_written(given, tmp_path, change):
    _, file, _ = given
    with pytest.raises(BadInput) as caught:
        sweep(make_sweep({**GIVEN, "init": file, **change}), tmp_path / "runs")
    assert caught.value.name == "init"
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["nothing.npz", "", "x" * 300])
def test_a_file_that_is_not_there_is_refused_as_init(tmp_path, name):
    with pytest.raises(BadInput, match="exists") as caught:
        make_sweep({**GIVEN, "init": str(tmp_path / name)})
    assert caught.value.name == "init"
