"""How the commands use the machine: what was compiled once is kept, each core is a device of its own, and an analysis
keeps its memory."""

import ctypes
import hashlib
import os
import platform
import sys
import warnings
from contextlib import suppress
from pathlib import Path

MAX_BYTES = 1_000_000_000  # of compiled programs that are kept; the one unused for longest goes first
MIN_COMPILE_SECONDS = 0.1  # what compiles faster is not kept
# mallopt(3): one arena, which can grow to any size; no mapping for a large array alone; nothing given back below 2 GB;
# and room for the next array whenever the arena grows.
M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -8, -4, -1, -2
GLIBC_KEEPS = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2 * 10**8}


def keep_compiled(wanted: bool) -> None:
    """Have JAX keep what it compiles in the user's cache, in this process and those that it starts, or not.

    It must be called before jax is imported. A cache that the user has named by JAX_COMPILATION_CACHE_DIR is left as it
    is, and so is one that cannot be written.
    """
    if not wanted:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or "jax" in sys.modules:
        return
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        _forget_unfinished(folder)
    except (OSError, RuntimeError):  # no home, or none that can be written
        return
    if not os.access(folder, os.W_OK):
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MAX_BYTES))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(MIN_COMPILE_SECONDS))
    # JAX compiles anew where it cannot read or write an entry.
    warnings.filterwarnings("ignore", message=".*persistent compilation cache")


def cache_folder() -> Path:
    """The folder of compiled programs: one for each kind of processor, because a home may be shared by several, and a
    program that was compiled for one may not run on another."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "jaxgrok" / f"xla-{hashlib.sha256(_processor().encode()).hexdigest()[:8]}"


def _processor() -> str:
    """What tells this kind of processor from another."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
        return "\n".join([platform.machine(), *sorted(features)])
    return f"{platform.machine()} {platform.processor()}"


def _forget_unfinished(folder: Path) -> None:
    """Delete the entries that a killed process has left half written: those whose time of use, which is written last,
    is missing. JAX would stumble over them each time it looks for room. One that another process has looked up since
    has its time, and stays until it is the oldest; what it was to hold is compiled anew each time."""
    for entry in folder.glob("*-cache"):
        if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
            entry.unlink(missing_ok=True)


def keep_memory() -> None:
    """Have this process keep the memory that XLA frees, for the next program.

    A network's measures take 0.1 GB at p = 113. glibc would give it back to the system each time, which has to find and
    clear its pages anew: up to 10 % of an analysis. Nothing is done where the C library is another.
    """
    with suppress(OSError, AttributeError, TypeError):  # the last on Windows, for the name None
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in GLIBC_KEEPS.items():
            mallopt(option, value)


def spread_over_cores() -> None:
    """Make each core of the CPU a JAX device, so that as many runs train side by side.

    On two cores this is 1.07 times as fast for the mainline and up to 2 times for smaller products, because no product
    waits for the slower of its halves. A run alone still uses every core. Nothing is done where JAX has started, or
    where JAX_NUM_CPU_DEVICES or XLA_FLAGS names a number of devices.
    """
    import jax

    named = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if named or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    with suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", n_cores())


def n_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
