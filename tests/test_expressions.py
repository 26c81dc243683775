"""Operations that a user writes, against numbers modulo p one by one."""

import random
import re

import numpy as np
import pytest

from jaxgrok.config import BadInput, Config
from jaxgrok.expressions import NAMED, parse
from jaxgrok.measures.subjects import kind_of
from jaxgrok.tasks import make_task
from jaxgrok.training.grid import make_sweep

# Every operator of "Grokking: Generalization beyond overfitting on small algorithmic datasets", and more.
EXPRESSIONS = (
    *("x+y", "x-y", "x/y", "x/y if y%2 else x-y", "x^2+y^2", "x^2+x*y+y^2", "x^2+x*y+y^2+x", "x^3+x*y", "x^3+x*y^2+y"),
    *("-x", "-x^2", "(-x)^3", "x-(y-1)", "x-y-1", "x/y/3", "x/(y*3)", "2*(x+y)", "x^0", "0*x", "x/(x-y)", "(x+y)^5"),
    *("x if -(y%2)==0-1 else y", "x if -((x+1)%3)==0-2 else y", "-(x*y)", "-x*y", "x-(-y)", "-(x+y)^2", "-(-x)+0*y"),
    *("x if x<y else y", "(x if x%3 else 2*y)+1", "x*y if x+y==4 else 1/x", "x if x*x*y%5 else -y"),
)


class Modulo:
    """A number modulo p, with Python's operators."""

    def __init__(self, value, p):
        self.value, self.p = value % p, p

    def of(self, other):
        return other.value if isinstance(other, Modulo) else other

    def __add__(self, other):
        return Modulo(self.value + self.of(other), self.p)

    def __sub__(self, other):
        return Modulo(self.value - self.of(other), self.p)

    def __mul__(self, other):
        return Modulo(self.value * self.of(other), self.p)

    def __rmul__(self, other):
        return Modulo(self.value * other, self.p)

    def __truediv__(self, other):
        return Modulo(self.value * pow(self.of(other), -1, self.p), self.p)  # ValueError without an inverse

    def __rtruediv__(self, other):
        return Modulo(other * pow(self.value, -1, self.p), self.p)

    def __pow__(self, exponent):
        return Modulo(pow(self.value, exponent, self.p), self.p)

    def __neg__(self):
        return Modulo(-self.value, self.p)


def by_hand(text, x, y, p):
    """The value at one pair; None if it is not defined. Conditions are reckoned in whole numbers."""
    names = {"x": Modulo(x, p), "y": Modulo(y, p)}
    condition = re.search(r" if (.*?) else ", text)
    code = text.replace("^", "**")
    if condition:
        holds = eval(condition[1], {"x": x, "y": y})
        code = code.replace(condition[0], f" if {bool(holds)} else ")
    try:
        value = eval(code, names)
    except ValueError:
        return None
    return value.value if isinstance(value, Modulo) else value % p


@pytest.mark.parametrize("p", [2, 3, 7, 11])
@pytest.mark.parametrize("text", EXPRESSIONS)
def test_an_expression_is_what_it_says(text, p):
    values, defined = parse(text).table(p)
    for x in range(p):
        for y in range(p):
            expected = by_hand(text, x, y, p)
            assert defined[x, y] == (expected is not None)
            assert values[x, y] == (expected or 0)


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_the_one_form_of_an_expression_means_the_same(text):
    spaced = re.sub(r"([-+*/^()])", r" \1 ", text)
    once = parse(f"({spaced})")
    assert parse(once.text).text == once.text == parse(text).text
    for a, b in zip(parse(once.text).table(7), parse(text).table(7), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_stored_of_a_random_expression_means_the_same():
    rng = random.Random(0)

    def value(depth):
        if depth == 0:
            return rng.choice(["x", "y", "3", "x", "y"])
        form = rng.choice(
            ["({})+({})", "({})-({})", "({})*({})", "({})/({})", "-({})", "({})^2", "({}) if {} else ({})"]
        )
        parts = [value(depth - 1) for _ in range(2)]
        if "if" in form:
            return form.format(parts[0], condition(1), parts[1])
        return form.format(*parts)

    def condition(depth):
        if depth == 0:
            return rng.choice(["x", "y", "2"])
        form = rng.choice(["({})%3", "-({})", "({})+({})", "({})-({})", "({})*({})"])
        text = form.format(condition(depth - 1), condition(depth - 1))
        return f"({text}) {rng.choice(['==', '<', '>='])} ({condition(0)})" if rng.random() < 0.5 else f"({text})"

    kept = 0
    for _ in range(400):
        text = value(rng.choice([1, 2, 3]))
        try:
            once = parse(text)
        except ValueError:
            continue  # too long, or without x and y
        kept += 1
        assert parse(once.text).text == once.text
        task = Config(task=text, p=5).task
        assert Config(task=task, p=5).task == task
        for a, b in zip(parse(once.text).table(5), once.table(5), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=text)
    assert kept > 200


@pytest.mark.parametrize(
    "text",
    [
        "x if x else " * 15 + "y",
        "(x)",
        *(
            "",
            "3",
            "x+z",
            "x^y",
            "x^-1",
            "x^1001",
            "x**-1",
            "x%2",
            "x+1.5",
            "x<y",
            "x and y",
            "x//y",
            "x@y",
            "[x]",
            "x y",
        ),
        *("__import__('os').system('x')", "x.real+y", "x(y)", "(lambda: x)()", "x if x/y else y", "x if y%0 else x"),
        *("x+" * 200 + "y", "(" * 90 + "x" + ")" * 90 + "+y" * 20, "x if x if y else x else y", "x:=3", "f'{x}'+y"),
    ],
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse(text)
    with pytest.raises(BadInput, match=r"^task: got"):
        Config(task=text)


def test_names_and_expressions_are_one_task():
    for text, name in NAMED.items():
        assert Config(task=text).task == name
        np.testing.assert_array_equal(make_task(Config(task=text, p=11)).labels(0), parse(text).table(11)[0].ravel())
    assert Config(task=" x ^ 2 + y^2 ").task == "x^2+y^2"
    with pytest.raises(BadInput, match=r"task.*each once"):
        make_sweep({"task": "x+y,add"})
    with pytest.raises(BadInput, match=r"^p: got 12; accepted: a prime with task x/y"):
        Config(task="x/y", p=12)


def test_pairs_without_an_answer_are_neither_trained_on_nor_tested():
    task = make_task(Config(task="x/y", p=11))
    train, test = task.split(0.4, seed=3)
    assert (len(train.tokens), len(test.tokens)) == (44, 66) == (task.n_train(0.4), task.n_test(0.4))
    pairs = {(x, y) for x, y, _ in np.concatenate([train.tokens, test.tokens])}
    assert pairs == {(x, y) for x in range(11) for y in range(1, 11)}
    for examples in (train, test):
        x, y, _ = examples.tokens.T
        np.testing.assert_array_equal(examples.targets[:, 0] * y % 11, x)
    # The split is the authors' shuffle of the pairs that there are.
    order = [(x, y) for x in range(11) for y in range(11) if y]
    numbers = [11 * x + y for x, y in order]
    random.Random(3).shuffle(numbers)
    np.testing.assert_array_equal(task.split_indices(0.4, 3)[0], numbers[:44])
    with pytest.raises(BadInput, match=r"frac: got 0.001.*among the 110 of p = 11"):
        task.n_train(0.001)


def test_only_tasks_with_an_answer_everywhere_have_circuits():
    assert kind_of(Config(task="x/(x-y)")) is None
    assert kind_of(Config(task="x/y")) is not None  # over the pairs without 0
    assert kind_of(Config(task="x/y if y%2 else x-y")) is not None
    assert kind_of(Config(task="x^2+y^2", p=12)) is not None


def test_an_expression_makes_a_name_that_a_disk_can_hold():
    names = {make_sweep({"task": task}).default_name() for task in ("x/y", "x^2+y^2", "x*(y-1)", "x if x<y else y")}
    assert len(names) == 4
    assert all(re.fullmatch(r"[\w-]+", name) for name in names)
