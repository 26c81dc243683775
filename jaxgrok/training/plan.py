"""What a sweep will cost, and how its runs are laid into batches.

A bucket is a set of runs with equal shapes and equal length; a batch is the part of a bucket that trains at once.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrok.config import Config
from jaxgrok.tasks import make_task, step_examples
from jaxgrok.training.grid import Run

# Read positions that pass through the network at once on a CPU (training.sum_over_blocks); elsewhere all do.
CPU_BLOCK = 1024
# A batch on a CPU: as many runs as keep their activations in cache. Measured on two cores: at p = 113 a step takes 38.5 ms
# for a run alone and 44 ms for each of two or four together; small networks take the same, and save and dispatch at once.
CPU_CACHE_BYTES = 16e6
DEVICE_MEMORY_SHARE = 0.8
EFFICIENCY = 0.5  # of the matmul rate that a step reaches (scripts/benchmark.py); for the estimate of time alone


def block_of(config: Config) -> int:
    """Examples in a block on a CPU."""
    start, stop = make_task(config).read
    return max(1, CPU_BLOCK // (stop - start))


def forward_flops(config: Config, n_examples: int) -> float:
    """Floating-point operations of one forward pass, matrix products only (2 per multiply-add)."""
    task = make_task(config)
    M = config.mlp_width  # 0 without MLPs
    if config.arch == "mlp":
        return n_examples * 2 * M * task.p
    D, S, Q = config.d_model, task.n_ctx, task.read[1] - task.read[0]
    per_example = 2 * Q * D * task.d_vocab_out
    for layer in range(config.n_layers):
        queries = Q if layer == config.n_layers - 1 else S
        per_example += queries * (2 * D * D + 4 * D * M + 4 * S * D)
        if layer:
            per_example += (2 * S + queries) * 2 * D * D
    tables = 2 * task.d_vocab * D * 3 * D
    return n_examples * per_example + tables


def epoch_flops(config: Config, n_train: int | None) -> float:
    """One training epoch, which is one step: the forward pass and twice that for its gradient."""
    return 3 * forward_flops(config, step_examples(config, n_train))


def n_params(config: Config) -> int:
    """Parameters of one run."""
    task, M = make_task(config), config.mlp_width
    if config.arch == "mlp":
        return 2 * task.p * M + M + task.p
    D = config.d_model
    block = 4 * D * D + (2 * D * M + M + D if M else 0)
    return D * (task.d_vocab + (config.n_ctx or task.n_ctx) + task.d_vocab_out) + config.n_layers * block


def run_bytes(config: Config, n_train: int | None, n_test: int, block: int | None = None) -> int:
    """Device memory that one run needs while it trains or is evaluated: an upper estimate from the sizes of its activations."""
    task, M = make_task(config), config.mlp_width
    n_train = step_examples(config, n_train)
    if block is not None:
        n_train, n_test = min(n_train, block), min(n_test, block)
    if config.arch == "mlp":
        kept, read = 4 * M + 3 * task.p, 2 * M + 2 * task.p
    else:
        D, S, Q = config.d_model, task.n_ctx, task.read[1] - task.read[0]
        kept = read = 3 * Q * task.d_vocab_out
        for layer in range(config.n_layers):
            queries = Q if layer == config.n_layers - 1 else S
            pattern = 2 * config.n_heads * queries * S if S > 3 else 0  # of three positions nothing to speak of
            kept += 4 * S * D + 4 * queries * M + pattern
            read = max(read, 3 * S * D + 2 * queries * M + 2 * Q * task.d_vocab_out + pattern)
    itemsize = np.dtype(config.dtype).itemsize
    return itemsize * (max(n_train * kept, n_test * read) + 7 * n_params(config))


def batch_size(config: Config, n_train: int | None, n_test: int, devices) -> int:
    """Runs that share a batch, over all devices: what fits in memory, or on a CPU in cache."""
    if devices[0].platform == "cpu":
        each = CPU_CACHE_BYTES // run_bytes(config, n_train, n_test, block_of(config))
    else:
        one = run_bytes(config, n_train, n_test)
        limit = (devices[0].memory_stats() or {}).get("bytes_limit", 16e9)
        each = DEVICE_MEMORY_SHARE * limit // one
    return max(1, int(each)) * len(devices)


@dataclass(frozen=True)
class Batch:
    """Runs that train at once: equal config, train and test size and length. runs: their numbers in the manifest; n_train None:
    unlimited data."""

    runs: tuple[int, ...]
    config: Config
    n_train: int | None
    epochs: int


def make_batches(runs: dict[int, Run], epochs: dict[int, int], devices, batch_runs: int | None = None) -> list[Batch]:
    """Lay runs {number: Run}, each with its planned epochs, into batches; within a bucket sizes differ by at most one."""
    buckets = {}
    for number, run in runs.items():
        buckets.setdefault((run.config, run.n_train, epochs[number]), []).append(number)
    batches = []
    for (config, n_train, length), members in buckets.items():
        first = runs[members[0]]
        size = batch_runs or batch_size(config, n_train, make_task(config).n_test(first.size), devices)
        parts = np.array_split(members, -(-len(members) // size))
        batches.extend(Batch(tuple(map(int, part)), config, n_train, length) for part in parts)
    return batches


def matmul_rate(config: Config, n_train: int | None, runs: int, devices) -> float:
    """FLOP/s, on one device, of a step's widest product (examples x width) for a batch of runs: the median of five."""
    on_cpu = devices[0].platform == "cpu"
    task = make_task(config)
    n = step_examples(config, n_train) * (task.read[1] - task.read[0])
    n, R = (min(n, CPU_BLOCK), 1) if on_cpu else (n, max(1, runs // len(devices)))
    D = task.p if config.arch == "mlp" else config.d_model
    M = config.mlp_width or D
    a, b = jnp.ones((R, n, D), config.dtype), jnp.ones((R, D, M), config.dtype)
    repeat = 10  # products per wait, so that dispatch is not what is timed
    with jax.default_matmul_precision(config.matmul_precision):
        product = jax.jit(jnp.matmul)
        jax.block_until_ready(product(a, b))
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready([product(a, b) for _ in range(repeat)])
            seconds.append((time.perf_counter() - start) / repeat)
    return 2 * R * n * D * M / float(np.median(seconds))


@dataclass(frozen=True)
class Cost:
    """What a bucket has left to train. flops: of the epochs left, evaluations included; disk: bytes of checkpoints in all."""

    config: Config
    n_train: int | None
    runs: int
    batches: int
    batch: int
    epochs: int
    flops: float
    seconds: float
    disk: float


def checkpoint_bytes(config: Config) -> int:
    """One saved set of one run's parameters."""
    return n_params(config) * np.dtype(config.dtype).itemsize


def describe(plan) -> list[Cost]:
    """The cost of each bucket of a `sweeping.Plan`. Time comes from the matmul rate measured now, times EFFICIENCY."""
    buckets = {}
    for number in plan.todo:
        batch = plan.batches[number]
        buckets.setdefault((batch.config, batch.n_train, batch.epochs), []).append(batch)
    costs = []
    for (config, n_train, epochs), members in buckets.items():
        runs = [run for batch in members for run in batch.runs]
        left = sum(max(0, epochs - plan.trained.get(run, 0)) for run in runs if run not in plan.ended)
        n_test = make_task(config).n_test(plan.runs[runs[0]].size)
        flops = left * (epoch_flops(config, n_train) + forward_flops(config, n_test) / plan.eval_every)
        size = max(len(batch.runs) for batch in members)
        rate = matmul_rate(config, n_train, size, plan.devices) * EFFICIENCY * len(plan.devices)
        disk = len(runs) * (len(plan.checkpoints(members[0])) + 3) * checkpoint_bytes(config)
        costs.append(Cost(config, n_train, len(runs), len(members), size, epochs, flops, flops / rate, disk))
    return costs
