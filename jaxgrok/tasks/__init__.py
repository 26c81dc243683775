"""The tasks: each file states one family, its examples and its split. `make_task` finds the one a config names."""

from jaxgrok.config import Config
from jaxgrok.tasks.base import Examples, Task
from jaxgrok.tasks.modular import ModularTask


def make_task(config: Config) -> Task:
    """The task of a config."""
    return ModularTask(config.task, config.p)


__all__ = ["Examples", "ModularTask", "Task", "make_task"]
