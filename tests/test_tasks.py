import json
import random

import numpy as np
import pytest

from jaxgrok.config import BadInput, Config
from jaxgrok.tasks import ModularTask, make_task

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
