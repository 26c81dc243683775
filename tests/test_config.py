import dataclasses
import json

import pytest

from jaxgrok.config import BadInput, Config, digits_of, fingerprint


def test_defaults_are_the_mainline():
    c = Config()
    assert (c.task, c.p, c.n_layers, c.d_model, c.n_heads, c.d_head, c.mlp_width, c.act) == ("add", 113, 1, 128, 4, 32, 512, "relu")
    assert (c.b1, c.b2, c.eps, c.warmup_steps) == (0.9, 0.98, 1e-8, 10)


def test_derived_numbers_follow_a_replacement():
    assert dataclasses.replace(Config(), d_model=64).mlp_width == 256
    assert Config(arch="mlp").mlp_width == 256
    assert Config(d_mlp=7).mlp_width == 7


@pytest.mark.parametrize(
    "fields",
    [
        {"p": 59, "loss": "float64", "d_mlp": 12},
        {"task": "induction", "arch": "attn_only", "seq_len": 31, "n_ctx": 40, "residual_factor": 2.0, "dropout": 0.1, "optimizer": "sgd"},
    ],
)
def test_json_round_trip(fields):
    c = Config(**fields)
    assert Config.from_dict(json.loads(json.dumps(c.to_dict()))) == c


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
        ("optimizer", "lion"),
        ("regulariser", "l3"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_is_accepted(field, value):
    with pytest.raises(BadInput) as error:
        Config(**{field: value})
    assert error.value.name == field
    assert error.value.value == value
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
    ],
)
def test_fields_that_do_not_go_together(fields, named):
    with pytest.raises(BadInput) as error:
        Config(**fields)
    assert (error.value.name, error.value.value) == (named, fields[named])


def test_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
