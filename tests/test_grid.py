from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxgrok.config import BadInput, Config
from jaxgrok.grid import NOTES, Sweep, default_epochs, make_sweep, parse_seeds, read_sweep_file, sweep_from
from jaxgrok.model import make_model
from jaxgrok.plan import n_params
from jaxgrok.tasks import make_task

FILES = sorted((Path(__file__).parent.parent / "sweeps").glob("*.toml"))


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("3", (0, 1, 2)),
        (3, (0, 1, 2)),
        ("1:2", (1,)),
        ("2:5", (2, 3, 4)),
        ("4,2", (4, 2)),
        ("0:2,7", (0, 1, 7)),
        ([5], (5,)),
        (range(4, 6), (4, 5)),
    ],
)
def test_seeds(text, seeds):
    assert parse_seeds("--seeds", text) == seeds


@pytest.mark.parametrize("text", ["", "0", "-1", "3:1", "2:2", "1,,2", "1,1", "a", "1.5", "-3:2", True, 1.5, [], "9999999999"])
def test_bad_seeds(text):
    with pytest.raises(BadInput, match="--seeds"):
        parse_seeds("--seeds", text)


def test_the_grid_is_the_product_with_seeds_innermost():
    sweep = make_sweep({"seeds": "2", "wd": "0.1,1", "frac": [0.3, 0.5], "lr": 1e-3})
    runs = [(run.frac, run.wd, run.seed) for run in sweep.runs()]
    assert runs == [(frac, wd, seed) for frac in (0.3, 0.5) for wd in (0.1, 1.0) for seed in (0, 1)]
    assert {run.config for run in sweep.runs()} == {Config()}


def test_a_list_makes_an_axis_of_any_model_field():
    sweep = make_sweep({"task": "add,subtract", "d_model": [8, 16], "seeds": 1})
    assert [(run.config.task, run.config.d_model) for run in sweep.runs()] == [("add", 8), ("add", 16), ("subtract", 8), ("subtract", 16)]
    assert sweep.fixed()["task"] == ["add", "subtract"]
    assert sweep.fixed()["p"] == 113


def test_train_sizes_differ_by_fraction():
    assert [run.n_train for run in make_sweep({"frac": "0.3,0.8", "seeds": 1}).runs()] == [3830, 10215]


@pytest.mark.parametrize(("wd", "epochs"), [(2.0, 40_000), (1.0, 40_000), (0.5, 80_000), (0.1, 150_000), (0.0, 150_000)])
def test_default_length(wd, epochs):
    assert default_epochs(wd) == epochs
    run = make_sweep({"wd": wd, "seeds": 1}).runs()[0]
    assert make_sweep({"wd": wd}).planned_epochs(run) == epochs
    assert make_sweep({"wd": wd, "until_settled": True}).planned_epochs(run) == epochs
    assert make_sweep({"wd": wd, "epochs": 7}).planned_epochs(run) == 7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("wd", "0.1,,1"),
        ("wd", ""),
        ("wd", "-1"),
        ("wd", "nan"),
        ("wd", "0.1,0.1"),
        ("wd", []),
        ("frac", "0"),
        ("frac", "1"),
        ("frac", "0.3,1.5"),
        ("lr", "0"),
        ("lr", "fast"),
        ("task", "divide"),
        ("task", "add,"),
        ("p", "1"),
        ("p", "5.5"),
        ("p", 5.5),
        ("n_heads", "3"),
        ("d_model", "130"),
        ("p", "100000"),
        ("epochs", "9" * 30),
        ("epochs", "0"),
        ("epochs", "1e3"),
        ("epochs", 2.5),
        ("eval_every", "0"),
        ("checkpoint_every", "-5"),
        ("split_seed", "-1"),
        ("until_settled", "yes"),
        ("max_epochs", "100"),
        ("nonsense", 1),
        ("b1", "one"),
    ],
)
def test_a_bad_value_is_named_as_the_user_named_it(field, value):
    with pytest.raises(BadInput) as error:
        make_sweep({field: value}, {field: f"--{field}"})
    assert error.value.name == f"--{field}"
    assert repr(value) in str(error.value) or str(value).strip(",") in str(error.value)


def test_a_fraction_without_pairs_names_the_modulus():
    with pytest.raises(BadInput, match="p = 2"):
        make_sweep({"p": 2, "frac": 0.1})


def test_a_length_is_given_once():
    with pytest.raises(BadInput, match="epochs"):
        make_sweep({"epochs": 10, "until_settled": True})


def test_the_default_name_depends_on_what_may_not_change():
    one = make_sweep({"seeds": 1, "epochs": 10})
    assert one.default_name() == make_sweep({"seeds": 9, "wd": "0.1", "epochs": 99}).default_name()
    assert one.default_name() != make_sweep({"seeds": 1, "epochs": 10, "d_model": 64}).default_name()
    assert one.default_name().startswith("add-p113-")


def test_flags_override_the_file_and_its_length_as_a_whole(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('question = "?"\nseeds = 4\np = 7\nuntil_settled = true\nmax_epochs = 100\nwd = [1.0, 2.0]\n')
    sweep = sweep_from(file, {"wd": "0.5", "epochs": None, "p": None})
    assert (sweep.wd, sweep.seeds, sweep.configs[0].p, sweep.max_epochs) == ((0.5,), (0, 1, 2, 3), 7, 100)
    assert sweep.default_name().startswith("mine-")
    fixed = sweep_from(file, {"epochs": "20"})
    assert (fixed.epochs, fixed.until_settled, fixed.max_epochs) == (20, False, None)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("seeds = 4\nwd = [1.0 2.0]\n", "line 2"),
        ("colour = 3\n", "colour"),
        ('p = "113"\n', "'p'"),
        ("p = 1\n", "'p'"),
        ("question = 3\n", "question"),
        ("wd = [true]\n", "'wd'"),
        ("[grid]\nseeds = 1\n", "grid"),
        ("until_settled = 1\n", "until_settled"),
    ],
)
def test_a_bad_sweep_file_names_the_line_or_the_key(tmp_path, text, named):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(BadInput) as error:
        sweep_from(file, {})
    assert named in str(error.value)
    assert "bad.toml" in str(error.value)


def test_a_missing_sweep_file(tmp_path):
    with pytest.raises(BadInput, match="No such file"):
        read_sweep_file(tmp_path / "none.toml")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_sweep_file_loads_and_its_networks_fit_its_data(file):
    said = read_sweep_file(file)
    assert all(said.get(note) for note in NOTES)
    sweep = sweep_from(file, {})
    assert isinstance(sweep, Sweep)
    for run in sweep.runs()[:: len(sweep.seeds)]:
        task = make_task(run.config)
        model, tokens = make_model(run.config, task), jax.ShapeDtypeStruct((run.n_train, task.n_ctx), jnp.int32)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
        logits, _ = jax.eval_shape(lambda params, tokens, model=model: model.apply({"params": params}, tokens), params, tokens)
        classes = task.p if run.config.arch == "mlp" else task.d_vocab_out
        assert logits.shape == (run.n_train, 1, classes)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == n_params(run.config)


def test_the_posts_experiments_are_there():
    expected = {"quick", "mainline", "weight_decay", "data_fraction", "precision", "no_weight_decay", "operations", "mlp"}
    assert expected <= {file.stem for file in FILES}
