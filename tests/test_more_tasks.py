"""Tasks on groups, parity, several operations in one network, and a class of one's own: each against plain Python."""

import itertools
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.stats import entropy

import jaxgrok
from jaxgrok import task_names, tasks
from jaxgrok.cli import main
from jaxgrok.config import BadInput, Config, Run
from jaxgrok.tasks import GroupTask, MixedTask, ModularTask, ParityTask, make_task
from jaxgrok.tasks.groups import inverses, table_of
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.layout import split_hash
from jaxgrok.training.sweep import sweep

REPOSITORY = Path(__file__).parent.parent


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


def test_a_class_of_ones_own_goes_through_everything(tmp_path, monkeypatch, capsys):
    """The class of the page on tasks: training, the tables of its parts, and figures."""
    monkeypatch.chdir(REPOSITORY)
    settings = "--task docs.maximum:Maximum --p 5,7 --frac 0.6 --d-model 8 --n-heads 2 --epochs 30 --seeds 2"
    out = tmp_path / "runs"
    assert main(["sweep", *settings.split(), "--out", str(out)]) == 0
    assert "x is larger" in capsys.readouterr().out
    results = jaxgrok.load(out)
    assert [record.config.p for record in results.runs] == [5, 5, 7, 7]
    assert "equal" in (out / "tables" / "parts.csv").read_text()
    assert list((out / "figures").glob("*.png"))
    (tokens, targets, part) = results.runs[0].task.all_examples(0)
    for (x, y, equals), (target,), (kind,) in zip(tokens.tolist(), targets.tolist(), part.tolist()):
        assert (target, kind, equals) == (max(x, y), 0 if x > y else 1 if x < y else 2, 5)
    assert main(["analyze", str(out)]) == 2
    assert "docs.maximum:Maximum" in capsys.readouterr().err
    assert (REPOSITORY / "docs" / "maximum.py").read_text() in (REPOSITORY / "docs/how-to/tasks.md").read_text()


HEAD = """
import numpy as np
import jax
from jaxgrok.tasks import Examples, ListedTask, DrawnTask

class Base(ListedTask):
    d_vocab, d_vocab_out, n_ctx, read, read_token = 4, 3, 3, (2, 3), 3

    def __init__(self, config):
        pass

    def all_examples(self, seed):
        x, y = (axis.ravel() for axis in np.indices((3, 3), np.int32))
        return Examples(np.stack([x, y, np.full_like(x, 3)], 1), x[:, None])

"""
WRONG_CLASSES = {
    "d_vocab_out = 2": "targets in int32 below d_vocab_out = 2; they are int32 from 0 to 2",
    "d_vocab = 3": "tokens in int32 below d_vocab = 3; they are int32 from 0 to 3",
    "read_token = 2": "read_token = 2 at the one position read",
    "n_ctx = 4": r"tokens of shape \(examples, n_ctx\) = \(9, 4\); they have \(9, 3\)",
    "read = (1, 3)": r"targets of shape \(examples, positions read\) = \(9, 2\)",
    "read = (2, 4)": "read positions within the 3 of a sequence",
    "parts, chance = ('x',), ()": "a chance for each of its parts; it has 0 and 1",
    "parts, chance = ('x',), (1.0,)": "a part for each target, if there are parts",
    "n_counted = 2": "n_counted = 2 targets",
    "def __init__(self): pass": "a class that can be made of a config .TypeError",
    "def all_examples(self, seed): return 1 / 0": "a class that can be made of a config .ZeroDivisionError",
    "d_vocab = None": "a class that can be made of a config",
    "def all_examples(self, seed): return jax.tree.map(lambda x: x.astype(int), super().all_examples(seed))": "int64",
}


@pytest.mark.parametrize("body", WRONG_CLASSES)
def test_a_class_that_contradicts_itself_is_refused_before_anything_is_trained(body, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    name = f"wrong_{list(WRONG_CLASSES).index(body)}"
    Path(f"{name}.py").write_text(f"{HEAD}class Wrong(Base):\n    {body}\n")
    with pytest.raises(BadInput, match=WRONG_CLASSES[body]):
        make_task(Config(task=f"{name}:Wrong"))
    assert main(["sweep", "--task", f"{name}:Wrong", "--epochs", "2", "--out", "runs"]) == 2
    assert f"--task: got '{name}:Wrong'" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert make_task(Config(task=f"{name}:Base")).n_examples == 9


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("import nothing_of_this_name", "a module that can be imported .ModuleNotFoundError"),
        ("class Wrong(:", "a module that can be imported .SyntaxError"),
        ("None.wrong", "a module that can be imported .AttributeError"),
        ("Wrong = 3", "a subclass of jaxgrok.tasks.ListedTask"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused(content, said, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    name = f"broken_{abs(hash(content))}"
    Path(f"{name}.py").write_text(f"{content}\n")
    with pytest.raises(BadInput, match=said):
        Config(task=f"{name}:Wrong")


def test_a_sweep_whose_class_is_gone_names_the_class(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    Path("for_a_while.py").write_text(HEAD)
    sizes = ["--frac", "0.5", "--d-model", "8", "--n-heads", "2", "--epochs", "4", "--seeds", "1"]
    assert main(["sweep", "--task", "for_a_while:Base", *sizes, "--out", "runs"]) == 0
    Path("for_a_while.py").unlink()
    del sys.modules["for_a_while"]
    for cached in (task_names.is_listed, task_names.is_modular, task_names.is_operation, tasks._task):
        cached.cache_clear()
    capsys.readouterr()
    assert main(["report", "runs"]) == 2
    said = capsys.readouterr().err
    assert "task: got 'for_a_while:Base'" in said
    assert "has to be where it was" in said


def test_p_counts_for_a_class_that_says_so_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    body = "    def all_examples(self, seed):\n        t, y, _ = super().all_examples(seed)\n"
    body += "        return Examples(np.tile(t, (self.p, 1)), np.tile(y, (self.p, 1)))\n"
    made = "    def __init__(self, config):\n        self.p = config.p\n"
    Path("with_p.py").write_text(
        f"{HEAD}class Not(Base):\n{made}{body}\nclass Is(Base):\n    modular = True\n{made}{body}\n"
    )
    runs = make_sweep({"task": "with_p:Not,with_p:Is", "p": 5, "frac": 0.5, "seeds": 1}).runs()
    assert [(run.config.p, run.n_train) for run in runs] == [(113, 113 * 9 // 2), (5, 5 * 9 // 2)]
    for run in runs:
        assert len(make_task(run.config).split(0.5, 0)[0].tokens) == run.n_train


def test_the_class_on_the_page_that_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs/how-to/tasks.md").read_text()
    (block,) = [block for block in page.split("```python\n")[1:] if "class Larger" in block]
    Path("on_the_page.py").write_text(f"{HEAD}import jax.numpy as jnp\n\n{block.split('```')[0]}")
    task = make_task(Config(task="on_the_page:Larger"))
    train, test = task.split(100, 0)
    for examples in (train, test):
        for (x, y, equals), (target,) in zip(examples.tokens.tolist(), examples.targets.tolist()):
            assert (target, equals) == (y > x, 50)
    assert len(test.tokens) == 256


DRAWING = """
class Draws(DrawnTask):
    d_vocab, d_vocab_out, n_ctx, read, batch_size, test_examples, universe = 3, 2, 3, (2, 3), 4, 8, 10**6

    def __init__(self, config):
        pass

    def sample(self, key, n):
        bits = jax.random.randint(key, (n, 2), 0, 2, np.int32)
        tokens = np.concatenate([bits, np.full((n, 1), 2, np.int32)], 1)
        return Examples(tokens, bits[:, :1])

class Frozen(Draws):
    def sample(self, key, n):
        bits = np.random.randint(0, 2, (n, 2)).astype(np.int32)
        return Examples(np.concatenate([bits, np.full((n, 1), 2, np.int32)], 1), bits[:, :1])
"""


def test_a_sampler_that_cannot_do_what_it_says_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    Path("drawing.py").write_text(
        HEAD.replace("import numpy as np", "import jax.numpy as np")
        + DRAWING.replace("np.random.randint(0, 2, (n, 2))", "__import__('numpy').random.randint(0, 2, (n, 2))")
    )
    with pytest.raises(BadInput, match="a function of its key alone"):
        make_task(Config(task="drawing:Frozen"))
    with pytest.raises(BadInput, match=r"its universe says 1,000,000, .* has drawn 4"):
        make_task(Config(task="drawing:Draws")).split(5, 0)


def test_a_class_whose_parts_have_changed_is_another(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    hashes = []
    for number in (1, 2):
        part = f"(e.tokens[:, :1] >= {number}).astype(np.int32)"
        body = "    parts = ('a', 'b')\n    def all_examples(self, seed):\n        e = super().all_examples(seed)\n"
        Path(f"parts_{number}.py").write_text(f"{HEAD}class P(Base):\n{body}        return e._replace(part={part})\n")
        hashes.append(split_hash(Run(Config(task=f"parts_{number}:P"), frac=0.5, n_train=4)))
        made = make_task(Config(task=f"parts_{number}:P"))
        assert made.chance == pytest.approx([np.log(number) if number > 1 else 0, np.log(3 - number)])
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("task", ["parity3", "addition2", "induction", "skip_trigram"])
def test_what_is_drawn_does_not_depend_on_x64(task):
    drawn = make_task(Config(task=task, arch="attn_only"))
    draws = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            draws.append(jax.tree.map(np.asarray, drawn.sample(jax.random.key(3), 50)))
    jax.tree.map(np.testing.assert_array_equal, *draws)


def test_a_class_is_found_in_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    Path("bits_here.py").write_text(
        "from jaxgrok.tasks import ParityTask\n\nclass Two(ParityTask):\n    def __init__"
        "(self, config):\n        super().__init__(2, 5)\n"
    )
    config = Config(task="bits_here:Two")
    assert (config.listed, config.modular) == (False, False)
    assert make_task(config).bits == 2
