"""Many processes in one job: each joins JAX's coordinator, and takes a shard of the sweep for its own devices.

The processes share nothing but the directory. JAX recognises Slurm, Open MPI, TPU pods and GKE, and then needs no
arguments.
"""

import jax
from jax._src.distributed import global_state  # orbax reads it too: jax.process_index() would look for devices

from jaxgrok.config import BadInput
from jaxgrok.store.files import Shard


def join(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> Shard:
    """Join the other processes of the job; returns the shard of this one.

    coordinator: `host:port` of process 0; count: how many processes there are; index: which one this is. None means
    what the environment says.

    Raises BadInput if the environment says nothing, or if the others do not answer.
    """
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (RuntimeError, ValueError) as error:
        what = f"{error}".splitlines()[0][:200]
        accepted = f"an environment that JAX recognises, or --coordinator, --num-processes and --process-id ({what})"
        raise BadInput("--distributed", coordinator or "no --coordinator", accepted) from None
    shard = Shard(global_state.process_id, global_state.num_processes)
    # From here on nobody needs the others. If they stayed joined, the end of one would be the end of all, and orbax
    # would have every save wait for everybody. This comes before JAX looks for devices, so it finds the local ones.
    jax.distributed.shutdown()
    global_state.process_id, global_state.num_processes = 0, 1  # which `shutdown` leaves as they were
    return shard
