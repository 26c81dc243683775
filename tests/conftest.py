"""Tests run under x64; what needs the reference files beside the checkout asks for `shared`."""

import atexit
import contextlib
import os
import shutil
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

# Many tests, and the commands that they run, compile the same programs. They share what is compiled, for this session:
# pytest-xdist's workers are started by a session that has named the folder already. A limit on its size makes JAX lock
# it, so that none reads what another has half written.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.mkdtemp(prefix="jaxgrok-tests-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = "2000000000"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    # Commands that are started without these have a cache of their own, in the user's: not here.
    os.environ["XDG_CACHE_HOME"] = str(Path(_compiled) / "user")

# XLA of jaxlib 0.10 compiles small programs in half the time with its older emitters of fused loops. Later releases
# have but one kind, and end the process at a flag that they do not know.
if version("jaxlib").startswith("0.10.") and "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"

import jax
import numpy as np
import pytest

from jaxgrok.stopping import SIGNALS

jax.config.update("jax_enable_x64", True)
# A strict session, as equinox and optimistix run theirs: arrays of different ranks or dtypes are not mixed without a
# word.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Small networks spend their time in the compiler: leave out its optimisations, here (but see
# `optimised`) and in the commands that tests run.
jax.config.update("jax_disable_most_optimizations", True)
# The environment of a command that is to run as it ships, or that is killed, which could tear what others share. Of
# pytest-xdist's workers, the session's is set already.
_OURS = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
COMPILED_IN_FULL = {name: value for name, value in os.environ.items() if name not in _OURS}
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

# Under nohup, or as a background job, the session is started with signals that are ignored, and its commands would be
# too: they leave alone what they were told to ignore. The tests send these signals, so they begin as in a terminal.
for _signum in SIGNALS:
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, signal.default_int_handler if _signum == signal.SIGINT else signal.SIG_DFL)

# So that no worker is left with a long file at the end.
LONGEST_FIRST = (
    "test_sweeping",
    "test_docs",
    "test_measures",
    "test_training",
    "test_drawn_sweeps",
    "test_analysis",
    "test_cli",
    "test_parts",
    "test_crossover",
    "test_heads",
    "test_drawn_training",
    "test_scripts",
    "test_settling",
)
REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    names = [*LONGEST_FIRST, ""]
    items.sort(key=lambda item: names.index(item.path.stem if item.path.stem in names else ""))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the authors' released runs and exact trajectories; absent on a user's machine."""
    path = Path(os.environ.get("JAXGROK_SHARED", REPOSITORY.parent / "shared"))
    if not path.exists():
        if os.environ.get("JAXGROK_REQUIRE_SHARED"):
            pytest.fail(f"{path} is missing, and JAXGROK_REQUIRE_SHARED is set")
        pytest.skip("the reference files (../shared, or JAXGROK_SHARED) are not on this machine")
    return path


@contextlib.contextmanager
def optimised():
    """Compile in full: for networks of the released size, and small ones that train for thousands of epochs."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def compile_in_full(request):
    with optimised() if {"shared", "settled"} & set(request.fixturenames) else contextlib.nullcontext():
        yield


def assert_equal_in_any_row(actual, desired):
    """Assert that numbers of float64 runs are equal wherever in a batch they were computed.

    On a CPU they are so bit for bit. A GPU's products round by the row.
    """
    rtol = 0 if jax.default_backend() == "cpu" else 1e-13
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
