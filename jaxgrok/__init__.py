"""Grokking, measured over many seeds: training sweeps and their analysis in JAX.

    import jaxgrok
    jaxgrok.train(jaxgrok.Config(p=59), epochs=500)     # train one run, in memory
    jaxgrok.sweep(jaxgrok.make_sweep({"seeds": 8}))     # train many runs, on disk
    jaxgrok.load("runs/NAME")                           # open a sweep for reading
    jaxgrok.measures.all(config, params, split)         # compute every measure of one network

The modules fourier, measures, interop, figures and tables are public too. Names are imported when they are first used,
so that a command can refuse a mistyped flag before jax starts.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxgrok import figures, measures, tables
    from jaxgrok.config import BadInput, Config, Run
    from jaxgrok.measures import fourier
    from jaxgrok.nets import interop
    from jaxgrok.store.results import load
    from jaxgrok.tasks import make_config
    from jaxgrok.training.grid import make_sweep
    from jaxgrok.training.run import train
    from jaxgrok.training.sweep import sweep

__version__ = "0.1.0"

__all__ = [
    "BadInput",
    "Config",
    "Run",
    "__version__",
    "figures",
    "fourier",
    "interop",
    "load",
    "make_config",
    "make_sweep",
    "measures",
    "sweep",
    "tables",
    "train",
]

_HOME = {
    "BadInput": "config",
    "Config": "config",
    "Run": "config",
    "load": "store.results",
    "make_config": "tasks",
    "make_sweep": "training.grid",
    "sweep": "training.sweep",
    "train": "training.run",
}
_MODULES = {
    "figures": "figures",
    "fourier": "measures.fourier",
    "interop": "nets.interop",
    "measures": "measures",
    "tables": "tables",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"jaxgrok.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"jaxgrok.{_MODULES[name]}")
    raise AttributeError(f"module 'jaxgrok' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
