"""Tasks on groups, parity, and several operations in one network: each against plain Python."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest
from scipy.stats import entropy

import jaxgrok
from jaxgrok import task_names
from jaxgrok.config import BadInput, Config
from jaxgrok.tasks import GroupTask, MixedTask, ModularTask, ParityTask, make_task
from jaxgrok.tasks.groups import inverses, table_of
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.sweep import sweep


def after(x, y):
    """The permutation x after y."""
    return tuple(x[i] for i in y)


def permutations(family, n):
    def sign(p):
        return np.linalg.det(np.eye(n)[list(p)])

    return [p for p in itertools.permutations(range(n)) if family == "s" or sign(p) > 0]


@pytest.mark.parametrize(("family", "n"), [("s", 3), ("s", 4), ("s", 5), ("a", 3), ("a", 4), ("a", 5)])
@pytest.mark.parametrize("end", ["", "_conjugate", "_xyx"])
def test_permutations_against_plain_python(family, n, end):
    elements = permutations(family, n)
    number = {p: i for i, p in enumerate(elements)}
    inverse = {p: tuple(np.argsort(p).tolist()) for p in elements}
    answer = {
        "": after,
        "_conjugate": lambda x, y: after(after(x, y), inverse[x]),
        "_xyx": lambda x, y: after(after(x, y), x),
    }[end]
    tokens, targets, part = make_task(Config(task=f"{family}{n}{end}")).all_examples(0)
    assert part is None
    assert tokens.dtype == targets.dtype == np.int32
    pairs = list(itertools.product(elements, repeat=2))
    assert tokens.tolist() == [[number[x], number[y], len(elements)] for x, y in pairs]
    assert targets.tolist() == [[number[answer(x, y)]] for x, y in pairs]


@pytest.mark.parametrize("n", [3, 4, 7])
def test_dihedral_groups_against_matrices(n):
    turn = 2 * np.pi / n
    rotations = [
        np.array([[np.cos(k * turn), -np.sin(k * turn)], [np.sin(k * turn), np.cos(k * turn)]]) for k in range(n)
    ]
    elements = np.array([*rotations, *(rotation @ np.diag([1, -1]) for rotation in rotations)])
    product = np.einsum("xij,yjk->xyik", elements, elements)
    distance = np.abs(product[:, :, None] - elements).sum((-1, -2))
    np.testing.assert_array_equal(table_of("d", n), distance.argmin(-1))
    assert distance.min(-1).max() < 1e-9


@pytest.mark.parametrize(("family", "n", "order"), [("s", 5, 120), ("s", 6, 720), ("a", 6, 360), ("d", 1000, 2000)])
def test_a_table_is_that_of_a_group(family, n, order):
    table = table_of(family, n)
    assert table.shape == (order, order)
    np.testing.assert_array_equal(
        np.sort(table, axis=0)[:, 0], np.arange(order)
    )  # each row and column is a permutation
    np.testing.assert_array_equal(np.sort(table, axis=1)[-1], np.arange(order))
    x, y, z = np.random.default_rng(0).integers(order, size=(3, 1000))
    np.testing.assert_array_equal(table[table[x, y], z], table[x, table[y, z]])
    assert len(set(table[x, inverses(table)[x]])) == 1


def test_the_worked_example_of_a_group():
    task = GroupTask(task_names.GroupName("s", 3, "xy"))
    tokens, targets, _ = task.all_examples(0)
    assert (tokens[1 * 6 + 2].tolist(), targets[1 * 6 + 2].tolist()) == ([1, 2, 6], [4])
    assert (task.d_vocab, task.d_vocab_out, task.read_token) == (7, 7, 6)
    without = make_task(Config(task="s3", sequence="xy"))
    assert (without.d_vocab, without.n_ctx, without.read, without.read_token) == (6, 2, (1, 2), None)


def test_a_task_that_lists_its_examples_is_split_as_pairs_are():
    task, pairs = make_task(Config(task="a4")), ModularTask("add", 12)
    for part, of_pairs in zip(task.split(0.3, 5), pairs.split(0.3, 5)):
        np.testing.assert_array_equal(part.tokens, of_pairs.tokens)
    assert (task.n_train(0.3), task.n_test(0.3)) == (43, 101)
    with pytest.raises(BadInput, match="among the 144"):
        task.n_train(0.001)
    train, test = task.split(0.3, seed=1, split_seed=5)
    np.testing.assert_array_equal(train.tokens, task.split(0.3, 5)[0].tokens)
    assert not set(map(tuple, train.tokens)) & set(map(tuple, test.tokens))


@pytest.mark.parametrize(("bits", "length"), [(1, 3), (3, 11), (10, 11)])
def test_parity_against_plain_python(bits, length):
    task = ParityTask(bits, length)
    tokens, targets, _ = jax.tree.map(np.asarray, task.sample(jax.random.key(0), 2000))
    assert tokens.shape == (2000, length)
    assert set(tokens[:, :-1].ravel()) == {0, 1}
    assert (tokens[:, -1] == 2).all()
    for row, (target,) in zip(tokens.tolist(), targets.tolist()):
        assert target == sum(row[:bits]) % 2
    assert 0.45 < targets.mean() < 0.55
    assert len(set(map(tuple, tokens[:, :-1]))) <= task.universe
    train, test = task.split(3, 0)
    assert len(train.tokens) == 3
    assert len(test.tokens) == min(1024, task.universe - 3)


def test_parity_of_more_bits_than_there_are_is_refused():
    with pytest.raises(BadInput, match="seq_len: got 4; accepted: at least 5"):
        make_task(Config(task="parity4", seq_len=4))


def test_several_operations_against_plain_python():
    p, names = 7, ("subtract", "add", "x2xyy2")
    answers = {
        "add": lambda x, y: (x + y) % p,
        "subtract": lambda x, y: (x - y) % p,
        "x2xyy2": lambda x, y: (x * x + x * y + y * y) % p,
    }
    task = make_task(Config(task="subtract+add+x2xyy2", p=p))
    assert isinstance(task, MixedTask)
    assert task.parts == names
    examples = task.all_examples(0)
    seen = Counter()
    for (x, name, y, equals), (target,), (part,) in zip(*(x.tolist() for x in examples)):
        assert equals == task.read_token == p
        assert name == p + 1 + part
        assert target == answers[names[part]](x, y)
        seen[x, y, part] += 1
    assert len(seen) == seen.total() == task.n_examples == 3 * p * p
    for i, chance in enumerate(task.chance):
        assert entropy(np.bincount(examples.targets[examples.part == i])) == pytest.approx(chance)
    assert examples.tokens.max() + 1 == task.d_vocab


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (" add + subtract", "add+subtract"),
        ("x+y", "add"),
        ("s5_conjugate", "s5_conjugate"),
        ("parity3", "parity3"),
        ("x+x^2", "x+x^2"),
    ],
)
def test_a_name_has_one_form(text, name):
    assert task_names.name_of(text) == Config(task=text).task == name


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("s2", "of groups N from 3"),
        ("s7", "of groups N from 3"),
        ("d1001", "of groups N from 3"),
        ("parity0", "K from 1 to 100"),
        ("add+add", "several of the first"),
        ("add+s5", "several of the first"),
        ("no.such.module:Name", "a module that can be imported"),
        ("jaxgrok.tasks:Nobody", "which has no Nobody"),
        ("jaxgrok.tasks:make_task", "a subclass of jaxgrok.tasks.ListedTask"),
    ],
)
def test_a_name_that_is_none_is_refused(text, accepted):
    with pytest.raises(BadInput, match=accepted):
        Config(task=text)


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "s3", "arch": "mlp"},
        {"task": "add+subtract", "arch": "mlp"},
        {"task": "add+subtract", "sequence": "xy"},
        {"task": "parity3", "attention": "full"},
        {"task": "parity3", "repeat_len": 3},
        {"task": "s3", "n_ctx": 4},
        {"task": "s3", "seq_len": 4},
    ],
)
def test_a_field_that_a_task_does_not_have_is_refused(fields):
    with pytest.raises(BadInput, match=list(fields)[1]):
        Config(**fields)


def test_a_sweep_of_tasks_of_every_kind(tmp_path):
    """Each task's size is its own axis, and p only of those that are modulo p."""
    settings = {"task": "s3,add+subtract,parity2", "p": 5, "frac": 0.6, "n_train": 20, "seq_len": 7}
    with pytest.raises(BadInput, match="seq_len"):
        make_sweep(settings)
    del settings["seq_len"]
    settings |= {"d_model": 8, "n_heads": 2, "seeds": 1, "epochs": 4, "n_test": 8}
    path = sweep(make_sweep(settings), tmp_path / "runs")
    runs = {record.config.task: record for record in jaxgrok.load(path).runs}
    assert [(runs[task].run.frac, runs[task].run.n_train) for task in runs] == [(0.6, 21), (0.6, 30), (None, 20)]
    assert [runs[task].coordinates["p"] for task in runs] == [None, 5, None]
    curves = jaxgrok.load(path).part_curves("subtract", task="add+subtract")
    assert np.isfinite(curves["test_part_loss"]["subtract"]).all()


@pytest.mark.parametrize("task", ["parity3", "addition2", "induction", "skip_trigram"])
def test_what_is_drawn_does_not_depend_on_x64(task):
    drawn = make_task(Config(task=task, arch="attn_only"))
    draws = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            draws.append(jax.tree.map(np.asarray, drawn.sample(jax.random.key(3), 50)))
    jax.tree.map(np.testing.assert_array_equal, *draws)
