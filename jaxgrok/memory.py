"""How much memory devices have, and this process may take."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

Devices = Sequence[Any]  # of jax.Device, to which jaxlib gives no type


def device_memory(devices: Devices) -> int | None:
    """Bytes of memory of each device: what an accelerator lets JAX use, or a CPU's share of the machine's memory.

    None if it is unknown.
    """
    if devices[0].platform != "cpu":
        return _accelerator_memory(devices[0])
    try:
        page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows, or a system that does not know these names
        return None
    if page <= 0 or pages <= 0:
        return None
    return page * pages // len(devices)


def _accelerator_memory(device: Any) -> int | None:
    """Bytes of an accelerator's memory that this process may fill, or None if it does not tell.

    With its first array JAX takes a share of all memory into its pool, or what other processes have left of it.
    """
    stats = device.memory_stats() or {}
    if stats.get("pool_bytes") == 0:
        jax.block_until_ready(jax.device_put(np.zeros(1, np.float32), device))
        stats = device.memory_stats()
    limit, pool = stats.get("bytes_limit"), stats.get("pool_bytes")
    takes_all = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true").lower() in ("true", "1")
    return pool if pool and takes_all else limit  # a pool that grows does not tell how far it will get


def address_space_left() -> int | None:
    """Bytes that this process may still map, by `ulimit -v`; None if there is no limit, or if it is unknown."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError):
        return None
    return None if limit == resource.RLIM_INFINITY else limit - mapped
