import dataclasses
import json

import numpy as np
import pytest

from jaxgrok.config import BadInput, Config, Run, fingerprint
from jaxgrok.task_names import digits_of


def test_defaults_are_the_mainline():
    c = Config()
    assert (c.task, c.p, c.n_layers, c.d_model, c.n_heads, c.d_head, c.mlp_width, c.act) == (
        "add",
        113,
        1,
        128,
        4,
        32,
        512,
        "relu",
    )
    assert (c.b1, c.b2, c.eps, c.warmup_steps) == (0.9, 0.98, 1e-8, 10)


def test_derived_numbers_follow_a_replacement():
    assert dataclasses.replace(Config(), d_model=64).mlp_width == 256
    assert Config(arch="mlp").mlp_width == 256
    assert Config(d_mlp=7).mlp_width == 7


@pytest.mark.parametrize(
    "fields",
    [
        {"p": 59, "loss": "float64", "d_mlp": 12},
        {
            "task": "induction",
            "arch": "attn_only",
            "seq_len": 31,
            "n_ctx": 40,
            "residual_factor": 2.0,
            "dropout": 0.1,
            "optimizer": "sgd",
        },
    ],
)
def test_json_round_trip(fields):
    c = Config(**fields)
    assert Config.from_dict(json.loads(json.dumps(c.to_dict()))) == c


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        ("p", np.int64(59), 59),
        ("d_mlp", np.int32(7), 7),
        ("batch_size", np.uint8(20), 20),
        ("residual_factor", 2, 2.0),
        ("residual_factor", np.float32(2), 2.0),
        ("residual_factor", np.int64(2), 2.0),
        ("dropout", 0, 0.0),
        ("b1", np.float64(0.5), 0.5),
    ],
)
def test_numbers_of_other_types_become_plain_ones(field, given, kept):
    config = Config(**{field: given})
    assert getattr(config, field) == kept
    assert type(getattr(config, field)) is type(kept)
    assert config == Config(**{field: kept})
    assert hash(config) == hash(Config(**{field: kept}))
    assert fingerprint(config.to_dict()) == fingerprint(Config(**{field: kept}).to_dict())


def test_a_run_carries_its_numbers_in_its_configs_dtype():
    run = Run(Config(p=5, dtype="float64"), seed=3, frac=0.5, n_train=12, weight_decay=0.0, split_seed=0)
    hyper = run.hyper()
    assert (hyper.seed, hyper.data_seed, hyper.weight_decay, hyper.lr) == (3, 0, 0.0, 1e-3)  # 0 is a seed
    assert hyper.lr.dtype == np.float64
    assert Run(Config(), seed=3).hyper().data_seed == 3
    assert Run.from_coordinates(json.loads(json.dumps(run.coordinates()))) == run
    assert "wd" in run.coordinates()


def test_what_a_record_lacks_is_at_its_default():
    assert Config.from_dict({"p": 59, "d_mlp": None, "seed": 3}) == Config(p=59)


@pytest.mark.parametrize(
    ("task", "digits"), [("addition1", 1), ("addition15", 15), ("addition100", 100), ("add", None), ("induction", None)]
)
def test_digits_of_a_task(task, digits):
    assert digits_of(task) == digits
    assert Config(task=task).task == task


def test_attention_alone_has_no_width():
    assert Config(arch="attn_only").mlp_width == Config(arch="attn_only", d_mlp=7).mlp_width == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "divide"),
        ("p", 1),
        ("p", 2.5),
        ("p", True),
        ("arch", "rnn"),
        ("n_heads", 3),
        ("n_heads", 0),
        ("d_model", 0),
        ("d_mlp", 0),
        ("act", "tanh"),
        ("loss", "float16"),
        ("dtype", "bfloat16"),
        ("matmul_precision", "fast"),
        ("b2", 1.0),
        *(("task", f"addition{digits}") for digits in ("", "0", "01", "x", "101", "<N>", "-1", "1.0", "1\n", "²")),
        ("task", 3),
        ("residual_factor", 0.0),
        ("residual_factor", float("inf")),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("n_ctx", 0),
        ("batch_size", 0),
        ("n_test", 0),
        ("seq_len", 13),
        ("repeat_len", 4),
        ("n_repeats", 2),
        ("n_tokens", 9),
        ("optimizer", "adagrad"),
        ("regulariser", "l3"),
        *((field, True) for field in ("p", "d_mlp", "n_layers", "residual_factor", "dropout", "b1")),
        *((field, np.bool_(True)) for field in ("p", "residual_factor")),
        *((field, float("nan")) for field in ("residual_factor", "dropout", "b1", "b2", "eps", "p")),
        *((field, np.float64("nan")) for field in ("residual_factor", "dropout")),
        *((field, 10**20) for field in ("p", "n_layers", "n_heads", "d_model", "d_mlp", "batch_size", "warmup_steps")),
        *((field, "7") for field in ("p", "d_mlp", "residual_factor")),
        ("n_layers", 2**31 - 1),
        ("n_ctx", 10**20),
        ("n_test", 10**20),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_is_accepted(field, value):
    with pytest.raises(BadInput) as error:
        Config(**{field: value})
    assert error.value.name == field
    assert error.value.value is value
    assert field in str(error.value)
    assert "accepted: " in str(error.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"task": "skip_trigram", "repeat_len": 4}, "repeat_len"),
        ({"task": "induction", "seq_len": 2}, "seq_len"),
        ({"task": "induction", "n_repeats": 1}, "n_repeats"),
        ({"task": "induction", "arch": "mlp"}, "arch"),
        ({"arch": "mlp", "dropout": 0.1}, "dropout"),
        ({"matmul_precision": "tf32_x3", "dtype": "float64"}, "matmul_precision"),
    ],
)
def test_fields_that_do_not_go_together(fields, named):
    with pytest.raises(BadInput) as error:
        Config(**fields)
    assert (error.value.name, error.value.value) == (named, fields[named])


def test_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})


def test_bad_input_is_one_printable_line_whatever_it_names():
    said = str(BadInput("key 'p' in a\nb.toml", "1\x1b[2J", "one of x\ny"))
    assert said == "key 'p' in a\\nb.toml: got '1\\x1b[2J'; accepted: one of x\\ny"


@pytest.mark.parametrize(
    ("name", "value"), [("wd", "../../x"), ("lr", [1]), ("frac", "0.3|"), ("seed", "1"), ("split_seed", 1.5)]
)
def test_coordinates_from_a_file_must_be_numbers(name, value):
    with pytest.raises(BadInput) as error:
        Run.from_coordinates({**Run(Config(), frac=0.3).coordinates(), name: value})
    assert error.value.name == name
