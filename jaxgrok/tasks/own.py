"""A task that a user has written: its class is imported, made, and checked before anything is trained on it.

A class that contradicts itself would train to numbers that mean nothing: a target outside the classes, or a part that
the loss does not count.
"""

from typing import Any

import jax
import numpy as np

from jaxgrok.config import BadInput, Config
from jaxgrok.tasks.base import Examples, Task
from jaxgrok.tasks.drawn import DrawnTask

DRAWN_FOR_CHECK = 8  # examples
OF_EVERY = ("d_vocab", "d_vocab_out", "n_ctx", "read")
OF_DRAWN = ("batch_size", "test_examples", "universe")


def make_own(found: Any, config: Config) -> Task:
    """The task of a user's class. Raises BadInput, which names the class, for what cannot be trained on."""
    try:
        task = found(config)
        wrong = _wrong(task)
    except BadInput:
        raise
    except Exception as error:
        wrong = f"a class that can be made of a config ({type(error).__name__}: {error})"
    if wrong:
        raise BadInput("task", config.task, wrong)
    return task


def _wrong(task: Any) -> str | None:
    """What would have to be otherwise, or None."""
    wanted = (*OF_EVERY, *(OF_DRAWN if isinstance(task, DrawnTask) else ()))
    if lacking := [name for name in wanted if not hasattr(task, name)]:
        return f"a class with {', '.join(lacking)}"
    if len(task.chance) != len(task.parts):
        return f"a chance for each of its parts; it has {len(task.chance)} and {len(task.parts)}"
    if isinstance(task, DrawnTask):
        key = jax.random.key(0)
        examples, again = (jax.tree.map(np.asarray, task.sample(key, DRAWN_FOR_CHECK)) for _ in range(2))
        if not all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(examples), jax.tree.leaves(again))):
            return "a sample that is a function of its key alone; it draws otherwise every time"
    else:
        examples = jax.tree.map(np.asarray, task.all_examples(0))
    return _wrong_examples(task, examples)


def _wrong_examples(task: Any, examples: Examples) -> str | None:
    tokens, targets, part = examples
    n, (start, stop) = len(tokens), task.read
    if tokens.shape != (n, task.n_ctx) or not n:
        return f"tokens of shape (examples, n_ctx) = ({n}, {task.n_ctx}); they have {tokens.shape}"
    if not 0 <= start < stop <= task.n_ctx:
        return f"read positions within the {task.n_ctx} of a sequence; read is {task.read}"
    if targets.shape != (n, stop - start):
        return f"targets of shape (examples, positions read) = ({n}, {stop - start}); they have {targets.shape}"
    for name, x, size in (("tokens", tokens, "d_vocab"), ("targets", targets, "d_vocab_out")):
        if x.dtype != np.int32 or x.min() < 0 or x.max() >= getattr(task, size):
            found = f"{x.dtype} from {x.min()} to {x.max()}"
            return f"{name} in int32 below {size} = {getattr(task, size)}; they are {found}"
    if task.read_token is not None and (stop - start > 1 or (tokens[:, start] != task.read_token).any()):
        return f"read_token = {task.read_token} at the one position read, in every example; or None"
    if (part is None) != (not task.parts):
        return "a part for each target, if there are parts, and None if there are none"
    if part is not None and (part.shape != targets.shape or part.min() < 0 or part.max() >= len(task.parts)):
        return f"parts of the shape of targets, {targets.shape}, below {len(task.parts)}; they have {part.shape}"
    counted = stop - start if part is None else (part < task.counted).sum(axis=1)
    if np.any(counted != task.n_counted) or task.n_counted < 1:
        return f"n_counted = {task.n_counted} targets of the first {task.counted} parts in every example"
    return None
