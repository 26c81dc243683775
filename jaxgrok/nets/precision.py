"""The precision of matrix products, set for everything that a function computes."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")

# Names of ours for precisions of JAX's.
PRESETS = {"tf32_x3": "TF32_TF32_F32_X3"}


def at_precision(precision: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the function runs with this default precision of matrix products, which is one of
    config.CHOICES["matmul_precision"] (`jax.default_matmul_precision`).

    JAX reads the default while it traces, so a decorated function keeps its precision under `jit` and `vmap`. The
    decorator goes below `jit`:

        @functools.partial(jax.jit, static_argnums=0)
        @at_precision("highest")
        def find_keys(config, params): ...
    """

    def decorate(f: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(f)
        def at_that_precision(*args: P.args, **kwargs: P.kwargs) -> R:
            with jax.default_matmul_precision(PRESETS.get(precision, precision)):
                return f(*args, **kwargs)

        return at_that_precision

    return decorate
