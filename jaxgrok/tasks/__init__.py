"""The tasks: each file states one family, its examples and its split. `make_task` finds the one a config names."""

from jaxgrok.config import MODULAR, BadInput, Config, digits_of
from jaxgrok.tasks.addition import AdditionTask
from jaxgrok.tasks.base import Examples, Task
from jaxgrok.tasks.induction import InductionTask
from jaxgrok.tasks.modular import ModularTask
from jaxgrok.tasks.skip_trigram import SkipTrigramTask

# What the published network of a task has other than the mainline (spec: EXPERIMENTS.md A2, A3).
NETWORKS = {
    "induction": {"arch": "attn_only", "n_layers": 2, "d_model": 48, "b2": 0.999},
    "skip_trigram": {"arch": "attn_only"},
}


def make_config(task: str = "add", **fields) -> Config:
    """A config with the published network of a task where `fields` say nothing else. Raises BadInput as Config does."""
    return Config(**{"task": task, **NETWORKS.get(task, {}), **fields})


def make_task(config: Config) -> Task:
    """The task of a config. Raises BadInput for sequences that cannot be, or that do not fit into the network's context."""
    if config.task in MODULAR:
        task = ModularTask(config.task, config.p)
    else:
        given = {name: getattr(config, name) for name in ("seq_len", "repeat_len", "n_repeats", "n_tokens") if getattr(config, name)}
        given |= {"test_examples": config.n_test} if config.n_test else {}
        if config.task == "induction":
            task = InductionTask(**given)
        elif config.task == "skip_trigram":
            task = SkipTrigramTask(**given)
        else:
            task = AdditionTask(digits_of(config.task), **given)
    if config.n_ctx is not None and config.n_ctx < task.n_ctx:
        raise BadInput("n_ctx", config.n_ctx, f"at least {task.n_ctx}, the sequences of task {config.task}")
    return task


def step_examples(config: Config, n_train: int | None) -> int:
    """Examples that one step trains on; n_train None: unlimited data. Raises BadInput for a minibatch larger than the train set."""
    if n_train is not None and (config.batch_size or 0) > n_train:
        raise BadInput("batch_size", config.batch_size, f"at most {n_train}, the train examples")
    return config.batch_size or n_train or make_task(config).batch_size


__all__ = [
    "AdditionTask",
    "Examples",
    "InductionTask",
    "ModularTask",
    "SkipTrigramTask",
    "Task",
    "make_config",
    "make_task",
    "step_examples",
]
