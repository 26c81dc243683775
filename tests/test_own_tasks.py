"""Classes of a user's own: the page's examples go through everything, and what contradicts itself is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest

import jaxgrok
from jaxgrok import task_names, tasks
from jaxgrok.cli import main
from jaxgrok.config import BadInput, Config, Run
from jaxgrok.tasks import make_task
from jaxgrok.training.grid import make_sweep
from jaxgrok.training.layout import split_hash
from tests.conftest import REPOSITORY


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
