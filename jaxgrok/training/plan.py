"""What a sweep will cost in operations, memory and disk, and how its runs are laid into batches.

A bucket is a set of runs with equal shapes and equal length. A batch is the part of a bucket that trains at once.
Everything here is computed from sizes: nothing is compiled but one matrix product, whose rate gives the time.
"""

import functools
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrok.config import BadInput, Config, Run
from jaxgrok.memory import Devices, address_space_left, device_memory
from jaxgrok.nets.model import Transformer, context, make_model
from jaxgrok.nets.precision import at_precision
from jaxgrok.store.records import Status
from jaxgrok.store.steps import KEPT_STEPS, SEAL_BYTES, SEAL_STATES
from jaxgrok.tasks import DrawnTask, ListedTask, make_config, make_task, step_examples

if TYPE_CHECKING:
    from jaxgrok.training.layout import Plan

# Read positions that pass through the network at once on a CPU (`sum_over_blocks` in training/run.py). Elsewhere all
# positions do.
CPU_BLOCK = 1024
# A batch on a CPU has as many runs for each device as keep their activations in cache. Measured on two cores, which the
# commands make two devices: at p = 113 a step takes 22.7 ms for a run alone, 21.3 ms for each of two on a device each,
# and 24.1 ms for each of four; at p = 31, d_model 32, it takes 0.51, 0.26 and 0.26 ms, and 0.30 ms for each of eight.
CPU_CACHE_BYTES = 8e6
COMPILER_BYTES = 1e9  # that a process maps to compile and to start its threads: 0.5 GB at p = 113 on two cores
DEVICE_MEMORY_SHARE = 0.8  # of an accelerator's memory that a batch may fill
UNKNOWN_DEVICE_BYTES = 16e9  # the memory of an accelerator that does not tell
# While it trains, a run holds its parameters, Adam's two moments, the gradient, its sum over blocks, the update and the
# new parameters. A saved state has the first three.
PARAMS_IN_TRAINING, PARAMS_IN_STATE = 7, 3  # and those of `_averages`
NEGLIGIBLE_POSITIONS = 3  # the attention patterns of sequences so short take no memory to speak of
INT32_BYTES = 4
FILES_IN_STEP = 16  # at most, of orbax

EFFICIENCY = 0.6  # of the matmul rate that a step reaches (scripts/benchmark.py); for the estimate of time alone
BACKWARD_FLOPS = 2  # the gradient costs so many forward passes
# The product that is timed is no larger than this, so that a plan takes seconds for any network. Above it the rate
# hardly depends on the size.
MAX_CPU_SIDE, MAX_DEVICE_SIDE, MAX_TIMED_NUMBERS = CPU_BLOCK, 4096, 2**27
TIMINGS, PAIRS_PER_TIMING = 5, 5  # several products per timing, so that it is not dispatch that is timed


def block_of(config: Config) -> int:
    """Examples in a block on a CPU."""
    start, stop = make_task(config).read
    return max(1, CPU_BLOCK // (stop - start))


def n_test(config: Config, n_train: int | None) -> int:
    """The number of test examples beside this number of train examples. n_train None means unlimited data."""
    task = make_task(config)
    if isinstance(task, ListedTask):
        assert n_train is not None  # a fraction of the list
        return task.n_examples - n_train
    assert isinstance(task, DrawnTask)
    return task.n_test(n_train)


# --- operations -------------------------------------------------------------------------------------------------------


def forward_flops(config: Config, n_examples: int) -> float:
    """Floating-point operations of one forward pass. Only matrix products count, with 2 operations per multiply-add."""
    task = make_task(config)
    M = config.mlp_width  # 0 without MLPs
    if config.arch == "mlp":
        return n_examples * 2 * M * config.p
    D, S, Q = config.d_model, task.n_ctx, task.read[1] - task.read[0]
    C, model = task.d_vocab_out, make_model(config, task)
    assert isinstance(model, Transformer)
    neurons, heads = model.folds(n_examples)
    # The first layer's projections are rows of projected tables. A constant query needs scores alone, and no keys.
    constant = config.n_layers == 1 and task.read_token is not None
    has_tables = model.has_tables(n_examples)  # else every token of every example is projected
    constant &= has_tables
    places = 1 if config.norm == "none" else context(config, task)
    rows, H, X = places * task.d_vocab, config.n_heads, task.d_vocab + S
    by_token = has_tables and model.attends_by_token
    if by_token:
        rows += context(config, task)
    once = has_tables * rows * D * (D + H if constant else 3 * D)
    if by_token and not constant:
        once += rows * D * (rows + D)  # scores of each with each, and W_V W_O
    once += neurons * M * D * C + heads * D * D * (M + C)
    each = Q * D * C - heads * Q * D * D + neurons * Q * M * (C - D)
    for layer in range(config.n_layers):
        queries = Q if layer == config.n_layers - 1 else S
        if by_token and layer == 0:
            attention = H * S * task.d_vocab + X * D + D * D if constant else H * (2 * S * task.d_vocab + X * D)
        else:
            attention = D * D + S * D * (1 if constant else 2)
        each += queries * (attention + 2 * D * M)
        if layer or not has_tables:
            each += (2 * S + queries) * D * D
    return 2 * (n_examples * each + once)


def epoch_flops(config: Config, n_train: int | None) -> float:
    """Floating-point operations of one epoch, which is one step: a forward pass and its gradient."""
    return (1 + BACKWARD_FLOPS) * forward_flops(config, step_examples(config, n_train))


# --- memory -----------------------------------------------------------------------------------------------------------


def n_params(config: Config) -> int:
    """The number of parameters of one run."""
    task, M = make_task(config), config.mlp_width
    if config.arch == "mlp":
        return 2 * config.p * M + M + config.p
    D = config.d_model
    n_ctx = task.n_ctx if config.n_ctx is None else config.n_ctx
    block = 4 * D * D + (2 * D * M + M + D if M else 0)
    of_norm = {"none": 0, "layernorm": 2 * D, "rmsnorm": D}[config.norm]
    norms = of_norm * (config.n_layers * (2 if M else 1) + 1)
    return D * (task.d_vocab + n_ctx + task.d_vocab_out) + config.n_layers * block + norms


def checkpoint_bytes(config: Config) -> int:
    """Bytes of one saved set of one run's parameters."""
    return n_params(config) * np.dtype(config.dtype).itemsize


def _averages(config: Config) -> int:
    """How many sets of parameters a state holds beside those of AdamW: those of grokfast."""
    return (config.grokfast_window or 1) if config.grokfast else 0


def run_bytes(config: Config, n_train: int | None, block: int | None = None) -> int:
    """Bytes that one run needs while it trains or is evaluated: an upper estimate, from the sizes of its activations.

    block: examples that pass through the network at once; None means all. The examples themselves are not counted.
    """
    train, test = step_examples(config, n_train), n_test(config, n_train)
    if block is not None:
        train, test = min(train, block), min(test, block)
    in_step, in_evaluation = _activations(config)
    copies = PARAMS_IN_TRAINING + _averages(config)
    numbers = max(train * in_step, test * in_evaluation) + copies * n_params(config)
    return np.dtype(config.dtype).itemsize * numbers


def _activations(config: Config) -> tuple[int, int]:
    """The numbers that one example takes: in a training step, which keeps activations for the gradient, and in an
    evaluation, which keeps those of one layer at a time."""
    task, M = make_task(config), config.mlp_width
    if config.arch == "mlp":
        return 4 * M + 3 * config.p, 2 * M + 2 * config.p
    D, S, Q, model = config.d_model, task.n_ctx, task.read[1] - task.read[0], make_model(config, task)
    assert isinstance(model, Transformer)
    in_step = in_evaluation = 3 * Q * task.d_vocab_out
    for layer in range(config.n_layers):
        queries = Q if layer == config.n_layers - 1 else S
        pattern = 2 * config.n_heads * queries * S if S > NEGLIGIBLE_POSITIONS else 0
        rows = S  # of width D: keys and values
        if layer == 0 and model.attends_by_token:
            rows, pattern = queries, pattern + (2 * config.n_heads * queries + S) * task.d_vocab
        in_step += 4 * rows * D + 4 * queries * M + pattern + (3 * S * D if config.norm != "none" else 0)
        in_evaluation = max(in_evaluation, 3 * rows * D + 2 * queries * M + 2 * Q * task.d_vocab_out + pattern)
    return in_step, in_evaluation


def _examples_bytes(config: Config, n_train: int | None) -> int:
    """Bytes of one run's examples: tokens [N, S], and targets and parts [N, Q]."""
    task = make_task(config)
    n = step_examples(config, None) if n_train is None else n_train
    per_example = task.n_ctx + 2 * (task.read[1] - task.read[0])
    return INT32_BYTES * (n + n_test(config, n_train)) * per_example


def run_memory(config: Config, n_train: int | None, devices: Devices) -> int:
    """Bytes of memory that one run needs on a device of this kind: an upper estimate, its examples included."""
    block = block_of(config) if devices[0].platform == "cpu" else None
    return run_bytes(config, n_train, block) + _examples_bytes(config, n_train)


def fits(config: Config, n_train: int | None, devices: Devices) -> bool | None:
    """Whether one run fits into the memory of a device; None if that memory is unknown."""
    available = device_memory(devices[:1])  # a run alone has one device, and of a CPU all memory
    return None if available is None else run_memory(config, n_train, devices) <= available


def check_memory(batches: Iterable["Batch"], devices: Devices) -> None:
    """Raises BadInput if one run of a batch does not fit into the memory of a device.

    It names the size that exceeds its published value by the largest factor, or `ulimit -v` if that is in the way.
    """
    available, left = device_memory(devices[:1]), address_space_left()
    for config, n_train in dict.fromkeys((batch.config, batch.n_train) for batch in batches):
        needed = run_memory(config, n_train, devices)
        on_host = COMPILER_BYTES + (needed if devices[0].platform == "cpu" else 0)
        if left is not None and left < on_host:
            # Nothing can be said later: the compiler's libraries abort where they get no memory.
            accepted = f"{byte_size(on_host - left)} more, to compile and train a run"
            raise BadInput("ulimit -v", "too little memory", accepted)
        if available is not None and needed > available:
            sizes = f"{byte_size(needed)}, of {byte_size(available)} available"
            accepted = f"sizes with which a run fits into memory: it needs {sizes}"
            raise BadInput(*_excessive(config, n_train), accepted)


def byte_size(n: float) -> str:
    """`12.3 MB` or `1.2 GB`."""
    return f"{n / 1e9:,.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def _excessive(config: Config, n_train: int | None) -> tuple[str, int | None]:
    """The name and value of the size that exceeds its published value by the largest factor."""
    published = make_config(config.task, arch=config.arch)
    task, usual = make_task(config), make_task(published)
    factors = {
        "d_model": config.d_model / published.d_model,
        "d_mlp": config.mlp_width / max(1, published.mlp_width),
        "n_layers": config.n_layers / published.n_layers,
        "seq_len": task.n_ctx / usual.n_ctx,
        "p" if config.modular else "n_tokens": task.d_vocab / usual.d_vocab,
        **({"task": task.d_vocab / make_task(Config()).d_vocab} if config.listed and not config.modular else {}),
    }
    if isinstance(task, DrawnTask) and isinstance(usual, DrawnTask):
        examples = "n_train" if config.batch_size is None else "batch_size"
        factors |= {examples: step_examples(config, n_train) / usual.batch_size}
        factors |= {"n_test": task.test_examples / usual.test_examples}
    name = max(factors, key=factors.__getitem__)  # the first of equals: d_mlp follows d_model unless it is given
    return name, n_train if name == "n_train" else getattr(config, name)


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Runs that train at once: their config, their train and test size and their length are equal.

    Attributes:
        runs: their numbers in the manifest.
        n_train: None means unlimited data.
        epochs: how long they train.
    """

    runs: tuple[int, ...]
    config: Config
    n_train: int | None
    epochs: int


def batch_size(config: Config, n_train: int | None, devices: Devices) -> int:
    """How many runs share a batch, over all devices: as many as fit into memory, and on a CPU into its cache."""
    if devices[0].platform == "cpu":
        memory, needed = device_memory(devices[:1]), run_memory(config, n_train, devices)
        if memory is not None and needed * len(devices) > memory:
            n = len(devices)  # halved, as a batch takes its devices: so no row of padding is added
            while n > 1 and n * needed > memory:
                n //= 2
            return n
        each = CPU_CACHE_BYTES // run_bytes(config, n_train, block_of(config))
    else:
        available = device_memory(devices)
        limit = UNKNOWN_DEVICE_BYTES if available is None else available
        each = DEVICE_MEMORY_SHARE * limit // run_bytes(config, n_train)
    return max(1, int(each)) * len(devices)


def make_batches(
    runs: Mapping[int, Run],
    epochs: Mapping[int, int],
    devices: Devices,
    batch_runs: int | None = None,
    shards: int = 1,
) -> list[Batch]:
    """Lay runs {number: Run}, with their planned epochs {number: epochs}, into batches.

    Within a bucket the sizes of batches are about equal, and multiples of the number of devices where that is possible.
    batch_runs: the most runs in a batch; None means `batch_size`. shards: so many batches there are at least, if there
    are runs enough.
    """
    buckets: dict[tuple[Config, int | None, int], list[int]] = {}
    for number, run in runs.items():
        buckets.setdefault((run.config, run.n_train, epochs[number]), []).append(number)
    batches = []
    for (config, n_train, length), members in buckets.items():
        size = batch_size(config, n_train, devices) if batch_runs is None else batch_runs
        size = min(size, -(-len(runs) // shards))
        n = len(devices) if size % len(devices) == 0 else 1
        units = [members[start : start + n] for start in range(0, len(members), n)]
        for part in np.array_split(np.arange(len(units)), -(-len(members) // size)):
            batches.append(Batch(tuple(run for unit in part for run in units[unit]), config, n_train, length))
    return batches


# --- cost -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a bucket has left to train.

    Attributes:
        runs, batches, batch: the number of runs, of batches, and of runs in the largest batch.
        epochs: the length of each run.
        flops: of the epochs that are left, with their evaluations.
        seconds: how long they will take, estimated.
        disk: bytes of all steps: parameters, curves and states; of a sweep until_settled, at most so many.
        files: how many files they are, at most about.
        memory: bytes of device memory that one run needs.
        fits: whether one run fits into a device's memory; None if that memory is unknown.
    """

    config: Config
    n_train: int | None
    runs: int
    batches: int
    batch: int
    epochs: int
    flops: float
    seconds: float
    disk: float
    files: int
    memory: int
    fits: bool | None


def _curve_bytes(plan: "Plan", batch: Batch) -> float:
    """Bytes of the curves of one run of a batch: a train loss each time, and three numbers and more an evaluation."""
    evaluated = 4 + 2 * len(make_task(batch.config).parts)
    width = 8 if batch.config.needs_x64 else 4
    return width * (batch.epochs / plan.sweep.train_every + evaluated * batch.epochs / plan.eval_every)


def _on_disk(plan: "Plan", batch: Batch) -> tuple[float, int]:
    """(bytes, files) that a batch leaves once it is trained.

    Parameters and curves are written in sealed steps, each with a state; the newest step before the last is kept too.
    """
    members, one = len(batch.runs), checkpoint_bytes(batch.config)
    checkpoints = len(plan.checkpoints(batch))
    recorded = members * (checkpoints * one + _curve_bytes(plan, batch))
    state = members * (PARAMS_IN_STATE + _averages(batch.config)) * one
    sealed = max(SEAL_BYTES, SEAL_STATES * state)
    steps = min(checkpoints, 1 + int(recorded // sealed))
    states = (steps + KEPT_STEPS - 1) * state
    return recorded + min(recorded, sealed) + states, (steps + KEPT_STEPS - 1) * FILES_IN_STEP


def check_disk(plan: "Plan") -> None:
    """Raises BadInput if what is left to train leaves more than the disk has room for.

    A sweep until_settled is let through: nobody knows how much less than the most it will need.
    """
    needed, free = bytes_to_write(plan), free_bytes(plan.files.path)
    if not plan.sweep.until_settled and free is not None and needed > free:
        sizes = f"{byte_size(needed)} more, of {byte_size(free)} free"
        raise BadInput("out", str(plan.files.path), f"a directory on a disk with room: the sweep leaves up to {sizes}")


def bytes_to_write(plan: "Plan") -> float:
    """The bytes at most that what is left to train adds to the directory."""
    needed = 0.0
    for number in plan.todo:
        batch = plan.batches[number]
        left = 1 - sum(plan.records[run].last_epoch for run in batch.runs) / (len(batch.runs) * batch.epochs)
        needed += max(0.0, left) * _on_disk(plan, batch)[0]
    return needed


def free_bytes(path: Path) -> int | None:
    """The bytes that are free where a path is, or will be; None if that is unknown."""
    for folder in (path.absolute(), *path.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            break
    return None


def describe(plan: "Plan") -> list[Cost]:
    """The cost of each bucket of a plan. Its time follows from the rate of matrix products, measured now."""
    buckets: dict[tuple[Config, int | None, int], list[Batch]] = {}
    for number in plan.todo:
        batch = plan.batches[number]
        buckets.setdefault((batch.config, batch.n_train, batch.epochs), []).append(batch)
    return [_cost(plan, batches) for batches in buckets.values()]


def _cost(plan: "Plan", batches: list[Batch]) -> Cost:
    """The cost of one bucket, given as its batches."""
    config, n_train, epochs = batches[0].config, batches[0].n_train, batches[0].epochs
    records = [plan.records[run] for batch in batches for run in batch.runs]
    left = sum(max(0, epochs - record.last_epoch) for record in records if record.status is not Status.ENDED)
    evaluation = forward_flops(config, n_test(config, n_train))
    flops = left * (epoch_flops(config, n_train) + evaluation / plan.eval_every)
    size = max(len(batch.runs) for batch in batches)
    # The cores of a CPU are devices that share one rate.
    n_devices = 1 if plan.devices[0].platform == "cpu" else len(plan.devices)
    rate = EFFICIENCY * n_devices * matmul_rate(config, n_train, size, plan.devices)
    disk, files = zip(*(_on_disk(plan, batch) for batch in batches))
    return Cost(
        config,
        n_train,
        runs=len(records),
        batches=len(batches),
        batch=size,
        epochs=epochs,
        flops=flops,
        seconds=flops / rate,
        disk=sum(disk),
        files=sum(files),
        memory=run_memory(config, n_train, plan.devices),
        fits=fits(config, n_train, plan.devices),
    )


def matmul_rate(config: Config, n_train: int | None, runs: int, devices: Devices) -> float:
    """FLOP/s, on one device, of the widest product of a step (examples x width) for a batch of this many runs.

    The product is made smaller where it would take long or much memory.
    """
    on_cpu = devices[0].platform == "cpu"
    task, D = make_task(config), config.p if config.arch == "mlp" else config.d_model
    M = config.mlp_width if config.mlp_width else D  # 0 without MLPs
    n = step_examples(config, n_train) * (task.read[1] - task.read[0])
    n, D, M = (min(side, MAX_CPU_SIDE if on_cpu else MAX_DEVICE_SIDE) for side in (n, D, M))
    R = 1 if on_cpu else min(runs // len(devices), MAX_TIMED_NUMBERS // (n * D + D * M + n * M))
    return _product_rate((max(1, R), n, D, M), config.dtype, config.matmul_precision)


@functools.cache
def _product_rate(shape: tuple[int, int, int, int], dtype: str, precision: str) -> float:
    """FLOP/s of a product [R, n, D] @ [R, D, M], and of one back, on the default device: the median of several
    timings."""
    R, n, D, M = shape
    a, b = jnp.ones((R, n, D), dtype), jnp.full((R, D, M), (D * M) ** -0.5, dtype)

    @jax.jit
    @at_precision(precision)
    def there_and_back(a, b):
        # In one program: a product that is called by itself spends most of its time on memory for its result.
        return jax.lax.fori_loop(0, PAIRS_PER_TIMING, lambda _, a: (a @ b) @ b.swapaxes(1, 2), a)

    jax.block_until_ready(there_and_back(a, b))
    seconds = []
    for _ in range(TIMINGS):
        start = time.perf_counter()
        jax.block_until_ready(there_and_back(a, b))
        seconds.append(time.perf_counter() - start)
    return 2 * PAIRS_PER_TIMING * 2 * R * n * D * M / float(np.median(seconds))
