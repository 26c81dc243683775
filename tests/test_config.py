import dataclasses

import pytest

from jaxgrok.config import BadInput, Config, fingerprint


def test_defaults_are_the_mainline():
    c = Config()
    assert (c.task, c.p, c.n_layers, c.d_model, c.n_heads, c.d_head, c.mlp_width, c.act) == ("add", 113, 1, 128, 4, 32, 512, "relu")
    assert (c.b1, c.b2, c.eps, c.warmup_steps) == (0.9, 0.98, 1e-8, 10)


def test_derived_numbers_follow_a_replacement():
    assert dataclasses.replace(Config(), d_model=64).mlp_width == 256
    assert Config(arch="mlp").mlp_width == 256
    assert Config(d_mlp=7).mlp_width == 7


def test_json_round_trip():
    c = Config(p=59, loss="float64", d_mlp=12)
    assert Config.from_dict(c.to_dict()) == c


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
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_is_accepted(field, value):
    with pytest.raises(BadInput) as error:
        Config(**{field: value})
    assert error.value.name == field
    assert error.value.value == value
    assert field in str(error.value)
    assert "accepted: " in str(error.value)


def test_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
