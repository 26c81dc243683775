import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrok.config import BadInput, Config, Run
from jaxgrok.nets.model import make_model
from jaxgrok.tasks import make_task, step_examples
from jaxgrok.training.grid import NOTES, Sweep, default_epochs, make_sweep, parse_seeds, read_sweep_file, sweep_from
from jaxgrok.training.plan import n_params

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
        (np.int64(2), (0, 1)),
        (f"{2**31 - 1}:{2**31}", (2**31 - 1,)),
    ],
)
def test_seeds(text, seeds):
    assert parse_seeds("--seeds", text) == seeds


HUGE = "9" * 20  # more than a C integer holds


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "-1", "3:1", "2:2", "1,,2", "1,1", "a", "1.5", "-3:2", "1:2:3", ":", "0:3,2", True, 1.5, [], [True]),
        *("9999999999", HUGE, f"0:{HUGE}", f"{HUGE}:{HUGE}0", f"1,{HUGE}", f"0:2,5:{HUGE}", f"-{HUGE}", "9" * 5000),
        *(int(HUGE), [0, int(HUGE)], "0:100001", f"{2**31}"),
    ],
)
def test_bad_seeds(text):
    with pytest.raises(BadInput, match="--seeds"):
        parse_seeds("--seeds", text)


def test_the_grid_is_the_product_with_seeds_innermost():
    sweep = make_sweep({"seeds": "2", "wd": "0.1,1", "frac": [0.3, 0.5], "lr": 1e-3})
    runs = [(run.frac, run.weight_decay, run.seed) for run in sweep.runs()]
    assert runs == [(frac, wd, seed) for frac in (0.3, 0.5) for wd in (0.1, 1.0) for seed in (0, 1)]
    assert {run.config for run in sweep.runs()} == {Config()}


def test_a_list_makes_an_axis_of_any_model_field():
    sweep = make_sweep({"task": "add,subtract", "d_model": [8, 16], "seeds": 1})
    assert [(run.config.task, run.config.d_model) for run in sweep.runs()] == [
        ("add", 8),
        ("add", 16),
        ("subtract", 8),
        ("subtract", 16),
    ]
    assert sweep.fixed()["task"] == ["add", "subtract"]
    assert sweep.fixed()["p"] == 113


MIXED = {
    "task": "add,addition1",
    "p": "7,11",
    "n_train": "20,unlimited",
    "frac": "0.3,0.5",
    "regulariser": "weight_decay,none",
    "wd": "1,2",
}


def test_each_task_has_its_own_size_and_no_run_comes_twice():
    runs = make_sweep({**MIXED, "seeds": 1}).runs()
    cells = [(run.config.task, run.config.p, run.size, run.config.regulariser, run.weight_decay) for run in runs]
    decays = [("weight_decay", 1.0), ("weight_decay", 2.0), ("none", 0.0)]
    expected = [("add", p, frac, *decay) for p in (7, 11) for frac in (0.3, 0.5) for decay in decays]
    # The other task has no modulus, so that p makes no second run of it.
    expected += [("addition1", 113, n_train, *decay) for n_train in (20, None) for decay in decays]
    assert len(cells) == len(expected)
    assert set(cells) == set(expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        MIXED,
        {
            "task": "induction",
            "seq_len": "13,19",
            "repeat_len": 3,
            "n_ctx": 30,
            "residual_factor": "1,2",
            "split_seed": 5,
        },
        {
            "arch": "attn_only,transformer",
            "dropout": "0,0.1",
            "optimizer": "sgd,adam",
            "init_scale": "0.5,1",
            "batch_size": 8,
        },
    ],
)
def test_runs_come_back_from_the_manifest(settings):
    for run in make_sweep({**settings, "seeds": 2}).runs():
        assert Run.from_coordinates(json.loads(json.dumps(run.coordinates()))) == run


def test_unlimited_data_and_the_length_of_its_runs():
    sweep = make_sweep({"task": "addition5", "n_train": [700, "unlimited"], "wd": "0.1", "seeds": 1})
    assert [(run.n_train, run.frac, sweep.planned_epochs(run)) for run in sweep.runs()] == [
        (700, None, 150_000),
        (None, None, 6000),
    ]
    assert [run.n_train for run in make_sweep({"task": "addition5", "seeds": 1}).runs()] == [None]


def test_a_task_has_its_published_network_unless_told_otherwise():
    configs = make_sweep({"task": "induction,skip_trigram,addition5", "d_model": 64}).configs
    assert [(c.arch, c.n_layers, c.d_model, c.b2) for c in configs] == [
        ("attn_only", 2, 64, 0.999),
        ("attn_only", 1, 64, 0.98),
        ("transformer", 1, 64, 0.98),
    ]
    assert make_sweep({"task": "induction", "arch": "transformer", "b2": 0.98}).configs[0].mlp_width == 4 * 48


def test_train_sizes_differ_by_fraction():
    assert [run.n_train for run in make_sweep({"frac": "0.3,0.8", "seeds": 1}).runs()] == [3830, 10215]


@pytest.mark.parametrize(
    ("wd", "epochs"), [(2.0, 40_000), (1.0, 40_000), (0.5, 80_000), (0.1, 150_000), (0.0, 150_000)]
)
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
        ("n_train", "100"),
        ("init_scale", "0"),
        ("init_scale", "nan"),
        ("residual_factor", "0"),
        ("dropout", "1"),
        ("optimizer", "adagrad"),
        ("regulariser", "l3"),
        ("batch_size", "4000"),
        ("batch_size", "0"),
        ("seq_len", "13"),
        ("n_ctx", "2"),
        ("task", "addition<N>"),
        ("task", "addition0"),
        *((field, HUGE) for field in ("d_mlp", "d_model", "n_layers", "p", "n_heads", "batch_size", "warmup_steps")),
        *((field, HUGE) for field in ("epochs", "eval_every", "checkpoint_every", "train_every", "split_seed")),
        ("n_layers", "2147483647"),
        ("wd", 10**400),
        ("b2", 10**400),
    ],
)
def test_a_bad_value_is_reported_under_the_users_name_for_it(field, value):
    with pytest.raises(BadInput) as error:
        make_sweep({field: value}, {field: f"--{field}"})
    assert error.value.name == f"--{field}"
    assert repr(value) in str(error.value) or str(value).strip(",") in str(error.value)


@pytest.mark.parametrize(
    "value", ["0", "-3", "1.5", "many", "20,20", "unlimited,unlimited", "", "100", "99,100", [], 2.5, True, "20,"]
)
def test_a_bad_number_of_examples(value):
    with pytest.raises(BadInput) as error:
        make_sweep({"task": "addition1", "n_train": value}, {"n_train": "--n-train"})
    assert error.value.name == "--n-train"


@pytest.mark.parametrize("field", ["n_tokens", "seq_len", "repeat_len", "n_repeats", "n_train", "n_test", "n_ctx"])
def test_a_number_out_of_reason_is_refused_at_once(field):
    start = time.monotonic()
    with pytest.raises(BadInput) as error:
        make_sweep({"task": "induction", field: HUGE}, {field: f"--{field}"})
    assert error.value.name == f"--{field}"
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("field", ["p", "frac"])
def test_what_only_modular_tasks_have_is_refused_where_there_is_none(field):
    settings = {"task": "addition1,induction", field: 7 if field == "p" else 0.5}
    with pytest.raises(BadInput, match="modular") as error:
        make_sweep(settings)
    assert error.value.name == field
    make_sweep({**settings, "task": "addition1,add"})


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


# The names of directories that were made before a field was added may not change.
NAMES = [
    ({}, "add-p113-6c732e"),
    ({"task": "add,subtract"}, "add-subtract-p113-d8062c"),
    ({"p": "53,59", "d_model": 48}, "add-p53-59-61722d"),
    ({"arch": "mlp", "p": 59}, "add-p59-20685f"),
    ({"loss": "exact,float32", "split_seed": 3}, "add-p113-742149"),
    ({"until_settled": True, "wd": 0.0}, "add-p113-0549b3"),
    ({"b2": 0.999, "d_mlp": 7}, "add-p113-2e1019"),
]


@pytest.mark.parametrize(("settings", "name"), NAMES)
def test_a_later_field_at_its_default_changes_no_name(settings, name):
    assert make_sweep(settings).default_name() == name
    defaults = {"residual_factor": 1, "dropout": 0, "optimizer": "adam", "regulariser": "weight_decay"}
    assert make_sweep({**settings, **defaults}).default_name() == name
    assert make_sweep({**settings, "regulariser": "l2"}).default_name() != name


# Names of searches depend on numbers of the grid too, under the names that the first version gave them.
NUMBERS = ("wd", "lr", "init_scale", "max_epochs")
SEARCHED = [
    ({"wd": "0.1,1", "lr": "0.01", "frac": "0.3,0.5"}, NUMBERS, "add-p113-fb6fd4"),
    (
        {"task": "addition5", "wd": 0.5, "until_settled": True, "max_epochs": 900, "init_scale": 2},
        NUMBERS,
        "addition5-bc30ac",
    ),
]


@pytest.mark.parametrize(("settings", "also", "name"), SEARCHED)
def test_a_name_may_depend_on_numbers_of_the_grid(settings, also, name):
    assert make_sweep(settings).default_name(also) == name
    assert make_sweep({**settings, "wd": 3}).default_name(also) != name


def test_a_setting_goes_by_the_name_of_its_flag():
    sweep = make_sweep({"wd": "0.1,1", "epochs": 5})
    assert (sweep.setting("wd"), sweep.setting("lr"), sweep.setting("epochs")) == ((0.1, 1.0), (0.001,), 5)


def test_the_preset_with_a_fixed_length_is_found_under_its_old_name():
    quick = Path(__file__).parent.parent / "sweeps" / "quick.toml"
    assert sweep_from(quick, {"epochs": 1500}).default_name() == "quick-d86e77"


def test_the_name_of_a_task_without_a_modulus():
    assert make_sweep({"task": "addition5,induction"}).default_name().startswith("addition5-induction-")
    assert make_sweep({"task": "addition5,add", "p": 7}).default_name().startswith("addition5-add-p7-")


def test_flags_override_the_file_and_its_length_as_a_whole(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('question = "?"\nseeds = 4\np = 7\nuntil_settled = true\nmax_epochs = 100\nwd = [1.0, 2.0]\n')
    sweep = sweep_from(file, {"wd": "0.5", "epochs": None, "p": None})
    assert (sweep.weight_decay, sweep.seeds, sweep.configs[0].p, sweep.max_epochs) == ((0.5,), (0, 1, 2, 3), 7, 100)
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


@pytest.mark.parametrize("text", ["p = " + "[" * 3000 + "]" * 3000, "p = " + "9" * 5000, "wd = 1e" + "9" * 30])
def test_a_sweep_file_out_of_reason(tmp_path, text):
    file = tmp_path / "deep.toml"
    file.write_text(text)
    with pytest.raises(BadInput) as error:
        sweep_from(file, {})
    assert "deep.toml" in str(error.value)
    assert "\n" not in str(error.value)


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
        n, read = step_examples(run.config, run.n_train), task.read[1] - task.read[0]
        model, tokens = make_model(run.config, task), jax.ShapeDtypeStruct((n, task.n_ctx), jnp.int32)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
        logits, _ = jax.eval_shape(
            lambda params, tokens, model=model: model.apply({"params": params}, tokens), params, tokens
        )
        classes = task.p if run.config.arch == "mlp" else task.d_vocab_out
        assert logits.shape == (n, read, classes)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == n_params(run.config)


def test_the_posts_experiments_are_there():
    expected = {
        "quick",
        "mainline",
        "weight_decay",
        "data_fraction",
        "precision",
        "no_weight_decay",
        "operations",
        "mlp",
    }
    assert expected <= {file.stem for file in FILES}


@pytest.mark.parametrize(
    ("settings", "named", "said"),
    [
        ({"seeds": 100_000, "wd": "1,2,3"}, "seeds", "at most 200,000 runs; this one has 300,000"),
        ({"p": list(range(2, 202)), "d_mlp": list(range(1, 102))}, "p", "at most 10,000 networks and tasks"),
    ],
)
def test_a_grid_out_of_reason_is_refused_at_once(settings, named, said):
    start = time.monotonic()
    with pytest.raises(BadInput, match=said) as error:
        make_sweep({"arch": "mlp", **settings})
    assert error.value.name == named
    assert time.monotonic() - start < 2
