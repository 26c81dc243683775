"""The tasks. Each file states one family: its examples and its split. `make_task` makes the one that a config names."""

import functools
from typing import Any

from jaxgrok import task_names
from jaxgrok.config import BadInput, Config
from jaxgrok.tasks.addition import AdditionTask
from jaxgrok.tasks.base import GENERALISED, Criterion, Examples, Task
from jaxgrok.tasks.drawn import DrawnTask
from jaxgrok.tasks.groups import GroupTask
from jaxgrok.tasks.induction import InductionTask
from jaxgrok.tasks.listed import ListedTask
from jaxgrok.tasks.mixed import MixedTask
from jaxgrok.tasks.modular import ModularTask
from jaxgrok.tasks.own import make_own
from jaxgrok.tasks.parity import ParityTask
from jaxgrok.tasks.skip_trigram import SkipTrigramTask

# How the published network of a task differs from the mainline (spec: EXPERIMENTS.md A2, A3).
NETWORKS: dict[str, dict[str, Any]] = {
    "induction": {"arch": "attn_only", "n_layers": 2, "d_model": 48, "b2": 0.999},
    "skip_trigram": {"arch": "attn_only"},
}
SEQUENCE_FIELDS = ("seq_len", "repeat_len", "n_repeats", "n_tokens")


def make_config(task: str = "add", **fields: Any) -> Config:
    """The config of a task's published network, changed by `fields`. Raises BadInput as Config does."""
    return Config(**{"task": task, **NETWORKS.get(task, {}), **fields})


def make_task(config: Config) -> Task:
    """The task of a config. Raises BadInput for sequences that cannot exist, or that are longer than the network's
    context."""
    task = _task(config)
    if config.n_ctx is not None and config.n_ctx < task.n_ctx:
        raise BadInput("n_ctx", config.n_ctx, f"at least {task.n_ctx}, the sequences of task {config.task}")
    return task


@functools.lru_cache(maxsize=64)
def _task(config: Config) -> Task:
    name = config.task
    if own := task_names.own_class(name):
        return make_own(own, config)
    if mixed := task_names.mixed_of(name):
        return MixedTask(mixed, config.p)
    if group := task_names.group_of(name):
        return GroupTask(group, config.sequence)
    return ModularTask(name, config.p, config.sequence) if config.modular else _drawn_task(config)


def _drawn_task(config: Config) -> DrawnTask:
    given = {name: getattr(config, name) for name in SEQUENCE_FIELDS if getattr(config, name) is not None}
    if config.n_test is not None:
        given["test_examples"] = config.n_test
    if config.task == "induction":
        return InductionTask(**given)
    if config.task == "skip_trigram":
        return SkipTrigramTask(**given)
    if (bits := task_names.bits_of(config.task)) is not None:
        return ParityTask(bits, **given)
    digits = task_names.digits_of(config.task)
    assert digits is not None  # Config accepts no other task
    return AdditionTask(digits, **given)


def modular_task(config: Config) -> ModularTask:
    """The task of a config whose examples are the pairs of one operation modulo p. Raises BadInput for another."""
    task = make_task(config)
    if not isinstance(task, ModularTask):
        accepted = f"{' '.join(task_names.MODULAR)}, or an expression in x and y"
        raise BadInput("task", config.task, accepted)
    return task


def induction_task(config: Config) -> InductionTask:
    """The task of a config for repeated subsequences. Raises BadInput for another."""
    task = make_task(config)
    if not isinstance(task, InductionTask):
        raise BadInput("task", config.task, "induction, whose sequences have copies to attend to")
    return task


def step_examples(config: Config, n_train: int | None) -> int:
    """How many examples one step trains on. n_train None means unlimited data.

    Raises BadInput for a minibatch that is larger than the train set.
    """
    if n_train is not None and config.batch_size is not None and config.batch_size > n_train:
        raise BadInput("batch_size", config.batch_size, f"at most {n_train}, the train examples")
    if config.batch_size is not None:
        return config.batch_size
    if n_train is not None:
        return n_train
    task = make_task(config)
    assert isinstance(task, DrawnTask)  # only these have unlimited data
    return task.batch_size


__all__ = [
    "GENERALISED",
    "NETWORKS",
    "AdditionTask",
    "Criterion",
    "DrawnTask",
    "Examples",
    "GroupTask",
    "InductionTask",
    "ListedTask",
    "MixedTask",
    "ModularTask",
    "ParityTask",
    "SkipTrigramTask",
    "Task",
    "induction_task",
    "make_config",
    "make_task",
    "modular_task",
    "step_examples",
]
