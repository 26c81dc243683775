import functools
import json
import random
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare, entropy

from jaxgrok.config import BadInput, Config
from jaxgrok.tasks import AdditionTask, InductionTask, ModularTask, SkipTrigramTask, make_config, make_task
from jaxgrok.tasks.drawn import _distinct

BRUTE = {
    "add": lambda x, y, p: (x + y) % p,
    "subtract": lambda x, y, p: (x - y) % p,
    "multiply": lambda x, y, p: x * y % p,
    "x2xyy2": lambda x, y, p: (x**2 + x * y + y**2) % p,
}


@pytest.mark.parametrize("p", [2, 3, 6, 11, 113])
@pytest.mark.parametrize("operation", BRUTE)
def test_labels_against_brute_force(operation, p):
    task = ModularTask(operation, p)
    examples = task.pairs(np.arange(p * p), seed=0)
    for (x, y, equals), (target,) in zip(examples.tokens.tolist(), examples.targets.tolist()):
        assert equals == p
        assert target == BRUTE[operation](x, y, p)
    assert examples.tokens.dtype == examples.targets.dtype == np.int32


def test_the_worked_example():
    examples = ModularTask("add", 5).pairs(np.array([19]), seed=0)
    assert examples.tokens.tolist() == [[3, 4, 5]]
    assert examples.targets.tolist() == [[2]]


def test_random_labels_are_one_table_per_seed():
    task = ModularTask("random", 11)
    assert (task.labels(3) == task.labels(3)).all()
    assert (task.labels(3) != task.labels(4)).any()
    assert set(task.labels(3)) <= set(range(11))
    # The split of another seed shows the same labels for the same pairs.
    for split_seed in (0, 5):
        train, test = task.split(0.5, seed=3, split_seed=split_seed)
        for part in (train, test):
            x, y, _ = part.tokens.T
            assert (part.targets[:, 0] == task.labels(3)[x * 11 + y]).all()
    assert (ModularTask("add", 11).labels(3) == ModularTask("add", 11).labels(4)).all()


def test_split_is_the_authors(shared):
    runs = json.loads((shared / "reference" / "author_trajectories_float64.json").read_text())
    runs = [run for run in runs.values() if "config" in run]
    assert len(runs) == 5
    for run in runs:
        c = run["config"]
        train, test = ModularTask(c["task"], c["p"]).split(c["frac_train"], seed=99, split_seed=c["split_seed"])
        assert train.tokens[:5, :2].tolist() == run["first_train_pairs"]
        assert len(train.tokens) == run["n_train"]
        assert len(train.tokens) + len(test.tokens) == c["p"] ** 2


def test_split_is_python_shuffle_and_disjoint():
    train, test = make_task(Config(p=113)).split(0.3, seed=7)
    pairs = [(i, j) for i in range(113) for j in range(113)]
    random.seed(7)
    random.shuffle(pairs)
    assert train.tokens[:, :2].tolist() == [list(pair) for pair in pairs[:3830]]
    assert test.tokens[:, :2].tolist() == [list(pair) for pair in pairs[3830:]]


@pytest.mark.parametrize(("p", "frac"), [(2, 0.1), (3, 0.1), (2, 0.2)])
def test_a_fraction_that_leaves_no_pair_is_refused(p, frac):
    with pytest.raises(BadInput, match="frac"):
        ModularTask("add", p).n_train(frac)


def test_a_fraction_near_one_leaves_a_test_pair():
    train, test = ModularTask("add", 2).split(0.99, seed=0)
    assert (len(train.tokens), len(test.tokens)) == (3, 1)


# --- drawn tasks: every example against its task in plain Python ------------------------------------------------------


def known_addition(task, tokens):
    """{position: (token, part)} of what the logits are to predict, found from the tokens of one sequence alone."""
    n = task.digits
    text = "".join("0123456789+="[token] for token in tokens)
    x, y, z = text.replace("+", " ").replace("=", " ").split()
    assert text == f"{x}+{y}={z}"
    assert (len(x), len(y), len(z)) == (n, n, n + 1)
    assert int(x) + int(y) == int(z)
    return {2 * n + 2 + i: (tokens[2 * n + 2 + i], f"digit {i}") for i in range(n + 1)}


def places(task, tokens):
    """The offsets, one in each block, at which all blocks of a sequence hold the same repeat_len tokens."""
    length, block = task.repeat_len, (len(tokens) - 1) // task.n_repeats
    blocks = [tokens[1 + i * block : 1 + (i + 1) * block] for i in range(task.n_repeats)]
    windows = [[tuple(b[at : at + length]) for at in range(block - length + 1)] for b in blocks]
    everywhere = set.intersection(*map(set, windows))
    return [
        at
        for copy in everywhere
        for at in product(*([i for i, w in enumerate(of_block) if w == copy] for of_block in windows))
    ]


def known_induction(task, tokens):
    assert tokens[0] == 0
    assert all(0 < token < task.n_tokens for token in tokens[1:])
    (offsets,) = places(task, tokens)  # each block has one copy, and no other repetition can be taken for it
    block = (task.seq_len - 1) // task.n_repeats
    parts = dict.fromkeys(range(block + 2, task.seq_len), "outside")
    for copy in range(1, task.n_repeats):
        first = 1 + copy * block + offsets[copy]
        parts |= {first + token: f"copy {copy} token {token}" for token in range(1, task.repeat_len)}
    return {position: (tokens[position], part) for position, part in parts.items()}


def known_skip_trigram(task, tokens):
    assert (tokens[0], tokens[-1]) == (20, 21)
    assert all(0 <= token < 20 for token in tokens[1:-1])
    (large,) = (token for token in tokens[1:-1] if token >= 10)
    return {len(tokens): (large - 10, f"entry {large}")}


KNOWN = {AdditionTask: known_addition, InductionTask: known_induction, SkipTrigramTask: known_skip_trigram}
MANY_TOKENS = 10**6  # of induction, so that nothing repeats by chance
DRAWN = [
    *(AdditionTask(digits) for digits in (1, 2, 5, 15)),
    InductionTask(85, 16, 3, MANY_TOKENS),
    InductionTask(7, 3, 2, MANY_TOKENS),  # a copy fills its block
    InductionTask(11, 3, 2, MANY_TOKENS),
    InductionTask(15, 2, 4, MANY_TOKENS),  # two positions are left over
    *(SkipTrigramTask(length) for length in (3, 7, 13)),
]


def assert_true_to_the_task(task, examples):
    start, stop = task.read
    tokens, targets, part = (x.tolist() for x in examples)
    assert examples.tokens.dtype == examples.targets.dtype == examples.part.dtype == np.int32
    for of_tokens, of_targets, of_part in zip(tokens, targets, part, strict=True):
        assert len(of_tokens) == task.n_ctx
        known = KNOWN[type(task)](task, of_tokens)
        # The logits at a position predict the next token.
        assert sorted(known) == list(range(start + 1, stop + 1))
        assert of_targets == [known[position][0] for position in range(start + 1, stop + 1)]
        assert [task.parts[i] for i in of_part] == [known[position][1] for position in range(start + 1, stop + 1)]
        assert sum(i < task.counted for i in of_part) == task.n_counted
    assert examples.tokens.max() < task.d_vocab
    assert 0 <= examples.targets.min() <= examples.targets.max() < task.d_vocab_out


def first(examples, n):
    return jax.tree.map(lambda x: x[:n], examples)


@functools.cache
def draw(task):
    """10,000 examples and, for induction, where each copy starts. Cached, because compiling the sampler takes long."""
    sampler = jax.jit(
        lambda key: (task.sample(key, 10_000), task.draw(key, 10_000)[1] if isinstance(task, InductionTask) else None)
    )
    return jax.tree.map(np.asarray, sampler(jax.random.key(0)))


@pytest.mark.parametrize("task", DRAWN, ids=str)
def test_every_example_against_the_task_in_plain_python(task):
    assert_true_to_the_task(task, first(draw(task)[0], 3000))


def assert_uniform(*columns):
    """Assert that the values in a column [N] are equally likely; with several columns, that all combinations are.

    A value that is in no row counts as one that does not exist.
    """
    sizes = [len(np.unique(column)) for column in columns]
    cells = np.ravel_multi_index([column - column.min() for column in columns], sizes)
    # There are some hundred such tests, on samples that do not change. A fair sampler passes them all at this level.
    assert chisquare(np.bincount(cells, minlength=np.prod(sizes))).pvalue > 1e-5


@pytest.mark.parametrize("digits", [1, 2, 5, 15])
def test_all_digits_are_uniform_and_independent(digits):
    tokens = draw(AdditionTask(digits))[0].tokens
    x, y, z = tokens[:, :digits], tokens[:, digits + 1 : 2 * digits + 1], tokens[:, 2 * digits + 2 :]
    numbers = np.concatenate([x, y], axis=1)
    for column in numbers.T:
        assert set(column) == set(range(10))  # leading zeros too
    for first, second in zip(numbers.T, np.roll(numbers, 1, axis=1).T):
        assert_uniform(first, second)
    for i in range(digits):
        assert_uniform(x[:, i], y[:, i])
    assert set(z[:, 0]) == {0, 1}


@pytest.mark.parametrize("digits", [1, 2, 5, 15])
def test_a_carry_goes_through_all_digits(monkeypatch, digits):
    nines, one = [9] * digits, [0] * (digits - 1) + [1]
    pairs = [
        (nines, one),
        (one, nines),
        (nines, nines),
        ([0] * digits, [0] * digits),
        ([4] * digits, [5] * digits),
        ([5] * digits,) * 2,
    ]
    monkeypatch.setattr(jax.random, "randint", lambda *_: jnp.array(list(zip(*pairs)), jnp.int32))
    examples = jax.tree.map(np.asarray, AdditionTask(digits).sample(None, len(pairs)))
    assert_true_to_the_task(AdditionTask(digits), examples)
    assert examples.targets[0].tolist() == examples.targets[1].tolist() == [1, *[0] * digits]
    assert examples.targets[4].tolist() == [0, *nines]


@pytest.mark.parametrize("lengths", [(85, 16, 3), (11, 3, 2), (15, 2, 4)])
def test_copies_lie_anywhere_in_their_blocks(lengths):
    task = InductionTask(*lengths, MANY_TOKENS)
    (tokens, _, _), copies = draw(task)
    block = (task.seq_len - 1) // task.n_repeats
    offsets = copies - 1 - block * np.arange(task.n_repeats)
    for of_tokens, of_offsets in zip(tokens[:500].tolist(), offsets.tolist()):
        assert places(task, of_tokens) == [tuple(of_offsets)]
    assert set(offsets.ravel()) == set(range(block - task.repeat_len + 1))
    for first, second in zip(offsets.T, np.roll(offsets, 1, axis=1).T):
        assert_uniform(first, second)


def test_the_tokens_of_induction_are_uniform_and_may_repeat_by_chance():
    task = InductionTask(9, 2, 2, 4)
    (tokens, _, _), copies = draw(task)
    for column in tokens[:, 1:].T:
        assert_uniform(column)
    # With few tokens a sequence can be read in several ways. What was drawn is one of them.
    found = [places(task, of_tokens) for of_tokens in tokens[:300].tolist()]
    assert max(map(len, found)) > 1
    for ways, of_copies in zip(found, copies.tolist()):
        assert tuple(first - 1 - 4 * i for i, first in enumerate(of_copies)) in ways


@pytest.mark.parametrize("length", [7, 13])
def test_position_and_entry_of_a_skip_trigram_are_uniform(length):
    examples, _ = draw(SkipTrigramTask(length))
    middle = examples.tokens[:, 1:-1]
    where = (middle >= 10).argmax(axis=1)
    assert set(where) == set(range(length - 2))
    assert_uniform(where, examples.targets[:, 0])
    assert_uniform(middle[middle < 10])
    assert_uniform(middle[where != 0, 0])


@pytest.mark.parametrize("task", [AdditionTask(5), InductionTask(11, 3, 2, 7), SkipTrigramTask()], ids=str)
def test_chance_is_the_best_guess_without_looking(task):
    examples, _ = draw(task)
    # The parts of skip trigrams are the targets themselves, so that a guess by part would know the answer.
    known = isinstance(task, SkipTrigramTask)
    for i, chance in enumerate(task.chance):
        targets = examples.targets if known else examples.targets[examples.part == i]
        assert entropy(np.bincount(targets.ravel())) == pytest.approx(chance, abs=0.002)
    assert len(task.chance) == len(task.parts)


def test_the_published_settings():
    task = make_task(Config(task="addition5"))
    assert (task.n_ctx, task.read, task.d_vocab, task.d_vocab_out) == (18, (11, 17), 12, 10)
    task = make_task(make_config("induction"))
    assert (task.n_ctx, task.block, task.d_vocab, task.n_counted, task.batch_size) == (85, 28, 128, 30, 128)
    assert make_config("induction") == Config(task="induction", arch="attn_only", n_layers=2, d_model=48, b2=0.999)
    task = make_task(make_config("skip_trigram"))
    assert (task.n_ctx, task.read, task.d_vocab, task.d_vocab_out) == (13, (12, 13), 22, 10)
    assert make_config("skip_trigram", arch="transformer") == Config(task="skip_trigram")


def test_worked_examples_of_the_drawn_tasks(monkeypatch):
    def drawn(task, *draws):
        draws = [np.array(draw, np.int32) for draw in draws]
        monkeypatch.setattr(jax.random, "randint", lambda *_: jnp.asarray(draws.pop(0)))
        return jax.tree.map(lambda x: x[0].tolist(), jax.jit(lambda: task.sample(jax.random.key(0), 1))())

    assert drawn(AdditionTask(3), [[[4, 7, 2]], [[9, 5, 1]]]).tokens == [4, 7, 2, 10, 9, 5, 1, 11, 1, 4, 2, 3]
    task = InductionTask(11, 3, 2, 10)
    examples = drawn(task, [[4, 1, 1, 1, 9, 1, 1, 1, 2, 6]], [[7, 3, 5]], [[1, 0]])
    assert examples.tokens == [0, 4, 7, 3, 5, 9, 7, 3, 5, 2, 6]
    counted = {task.parts[i]: target for i, target in zip(examples.part, examples.targets) if i < task.counted}
    assert counted == {"copy 1 token 1": 3, "copy 1 token 2": 5}
    examples = drawn(SkipTrigramTask(7), [[3, 9, 0, 0, 3]], [[2]], [[4]])
    assert (examples.tokens, examples.targets) == ([20, 3, 9, 14, 0, 3, 21], [4])


# --- drawn tasks: which examples a run has ----------------------------------------------------------------------------

SMALL = [(AdditionTask(1), 100), (SkipTrigramTask(4), 200), (InductionTask(7, 3, 2, 6), 125)]


def rows(examples):
    return list(map(tuple, examples.tokens.tolist()))


@pytest.mark.parametrize(("task", "universe"), SMALL, ids=str)
def test_the_universe_is_all_there_is(task, universe):
    assert task.universe == len(set(rows(draw(task)[0]))) == universe


@pytest.mark.parametrize("n_train", [1, 7, -1, None])
@pytest.mark.parametrize(("task", "universe"), SMALL, ids=str)
def test_train_and_test_examples_are_all_different(task, universe, n_train):
    n_train = universe - 1 if n_train == -1 else n_train
    train, test = task.split(n_train, seed=3)
    assert task.n_train(n_train) == n_train
    assert len(test.tokens) == task.n_test(n_train) == universe - (n_train or 0)
    if n_train is None:
        assert train is None
    else:
        assert len(train.tokens) == n_train
    every = [example for part in (train, test) if part is not None for example in rows(part)]
    assert len(set(every)) == len(every)
    for part in (train, test):
        if part is not None and not isinstance(task, InductionTask):  # its six tokens repeat by chance
            assert_true_to_the_task(task, part)


@pytest.mark.parametrize("task", [AdditionTask(5), SkipTrigramTask(), InductionTask(n_tokens=MANY_TOKENS)], ids=str)
def test_a_split_follows_from_its_seed(task):
    first = task.split(300, seed=3)
    assert_true_to_the_task(task, first[0])
    assert len(first[1].tokens) == task.test_examples == (256 if isinstance(task, InductionTask) else 1024)
    _distinct.cache_clear()
    with jax.enable_x64(False):
        single = task.split(300, seed=3)
    for again in (single, task.split(300, seed=8, split_seed=3)):
        jax.tree.map(np.testing.assert_array_equal, again, first)
    other = task.split(300, seed=4)
    # There are millions of sequences, so that none is drawn twice by chance.
    assert not set(rows(other[0]) + rows(other[1])) & set(rows(first[0]) + rows(first[1]))


def test_more_test_examples_on_request():
    task = make_task(Config(task="addition2", n_test=2000))
    assert len(task.split(50, seed=0)[1].tokens) == 2000
    assert len(make_task(Config(task="addition1", n_test=2000)).split(50, seed=0)[1].tokens) == 50
