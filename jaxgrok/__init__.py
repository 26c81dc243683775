"""Grokking, measured over many seeds: training sweeps and their analysis in JAX.

    import jaxgrok
    jaxgrok.train(jaxgrok.Config(p=59), epochs=500)     # one run, in memory
    jaxgrok.sweep(...)                                  # many runs, on disk
    jaxgrok.load("runs/NAME")                           # what a sweep left
    jaxgrok.measures.all(config, params, split)         # every measure of one network; also fourier, interop, figures

Names are imported when first used, so that a command can refuse a mistyped flag before jax starts.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "Config": "config",
    "BadInput": "config",
    "make_config": "tasks",
    "train": "training.run",
    "make_sweep": "training.grid",
    "sweep": "training.sweep",
    "load": "store.results",
}
_MODULES = {"fourier": "measures.fourier", "measures": "measures", "interop": "nets.interop", "figures": "figures"}
__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"jaxgrok.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"jaxgrok.{_MODULES[name]}")
    raise AttributeError(f"module 'jaxgrok' has no attribute {name!r}")
