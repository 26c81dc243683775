"""Time the mainline on an accelerator: the floor of its step, our step by number of runs and precision, a whole sweep,
an analysis, and other programs. `scripts/benchmark.py --gpu FILE` calls `measure` and writes FILE after each row.

The floor is what no program of the same operations can beat by much on this machine: its products at the rate that the
widest of them reaches by itself, or its activations once through memory at the rate of a plain copy, whichever takes
longer. Everything is timed here and now, as a median; `share_of_floor` is the floor's time over the step's.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jaxgrok.config import Config


@dataclass(frozen=True)
class Sizes:
    """How much is timed.

    p: the modulus. runs: how many train at once, the most telling first. steps: of one timing. copied: numbers in the
    copy that gives the rate of memory. networks: of an analysis at once. sweep: (runs, epochs) of the sweep whose time
    is stated. seconds: after which nothing more is begun.
    """

    p: int = 113
    runs: tuple[int, ...] = (64, 1, 1024, 8, 256)
    steps: int = 50
    copied: int = 2**28
    networks: tuple[int, ...] = (1, 16)
    sweep: tuple[int, int] = (64, 40_000)
    rounds: int = 5
    seconds: float = 400


TOY = Sizes(p=7, runs=(2, 1), steps=10, copied=2**16, networks=(2,), sweep=(2, 100), rounds=2)
PRECISIONS = {"float32": "highest", "tf32_x3": "tf32_x3", "tf32": "default"}
FRAC, EVAL_EVERY = 0.3, 10
SAVES = 400  # checkpoints of a sweep


def median_seconds(f: Callable[[], Any], rounds: int) -> float:
    """The median seconds of a call that returns arrays, after a first call."""
    import jax

    jax.block_until_ready(f())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(f())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def memory_rate(sizes: Sizes) -> float:
    """Bytes per second that a plain copy reads and writes."""
    import jax
    import jax.numpy as jnp

    x, copy = jnp.zeros(sizes.copied, jnp.float32), jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / median_seconds(lambda: copy(x), sizes.rounds)


def floor_seconds(config: "Config", runs: int, bytes_per_second: float) -> dict[str, float]:
    """The least seconds of an epoch of one run among so many, and the rates from which they follow."""
    import jax

    from jaxgrok.tasks import make_task
    from jaxgrok.training.plan import PARAMS_IN_TRAINING, epoch_flops, matmul_rate, n_params

    n = make_task(config).n_train(FRAC)
    assert n is not None  # a modular task
    rate = matmul_rate(config, n, runs, jax.local_devices()[:1])
    # Neurons, heads and logits are written forward and read back; parameters, moments and gradients once a step.
    numbers = n * 4 * (config.mlp_width + config.d_model + config.p) + PARAMS_IN_TRAINING * n_params(config)
    of_products, of_memory = epoch_flops(config, n) / rate, 4 * numbers / bytes_per_second
    return {"seconds": max(of_products, of_memory), "flop_per_second": rate, "of_memory": of_memory}


def trainer(
    config: "Config", size: float | None, runs: int, every: int | None, steps: int, devices: Sequence[Any]
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(a function that trains so many steps of each run and returns what was recorded last, one that copies the
    parameters to the host), with the sweep's own compiled functions.

    size: of the train set; None means unlimited data. every: steps between evaluations; None means none.
    """
    import jax
    import numpy as np

    from jaxgrok.config import Run
    from jaxgrok.tasks import make_task
    from jaxgrok.training.batch import compiled, most_intervals

    task, length = make_task(config), EVAL_EVERY if every is None else every
    functions = compiled(config, length, tuple(devices))
    rows = [(*task.split(size, seed), Run(config, seed).hyper()) for seed in range(runs)]
    train, test, hyper = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *rows), functions.sharding)
    state = functions.init(hyper)
    most, count = most_intervals(length), steps // length
    dispatches = [min(most, count - first) for first in range(0, count, most)]

    def advance() -> Any:
        nonlocal state
        recorded = None
        for intervals in dispatches:
            is_one = np.arange(most) < intervals
            n_steps = np.where(is_one, length, 0).astype(np.int32)
            state, recorded = functions.advance(state, train, test, hyper, n_steps, is_one & (every is not None))
        return recorded

    return advance, lambda: jax.tree.map(np.asarray, state.params)


class Row(NamedTuple):
    """A row to be measured.

    Attributes:
        table: the list in the file that it goes to.
        about: what tells it from the other rows.
        measure: yields the rest of it, part by part.
    """

    table: str
    about: dict[str, Any]
    measure: Callable[[], Iterable[dict[str, Any]]]


def step_row(config: "Config", runs: int, sizes: Sizes, bytes_per_second: float) -> Iterator[dict[str, Any]]:
    """The time of a step with so many runs at once, by cadence of evaluations, and its floor."""
    import jax

    floor = floor_seconds(config, runs, bytes_per_second)
    for every in (None, EVAL_EVERY, 1):
        advance, to_host = trainer(config, FRAC, runs, every, sizes.steps, jax.local_devices()[:1])
        seconds = median_seconds(advance, sizes.rounds) / (runs * sizes.steps)
        yield {f"ms_per_run_epoch_test_every_{every or 'never'}": 1e3 * seconds}
        if every is None:
            yield {"share_of_floor": floor["seconds"] / seconds, "floor": floor}
        if every == EVAL_EVERY:
            yield {"seconds_of_a_checkpoint": median_seconds(to_host, sizes.rounds)}


def analysis_row(config: "Config", networks: int, draws: int, rounds: int) -> Iterator[dict[str, Any]]:
    """The seconds of every measure of a network, with so many at once."""
    import jax

    from jaxgrok import measures
    from jaxgrok.config import Run
    from jaxgrok.measures import fourier
    from jaxgrok.training.run import make_program

    keys, split = fourier.mask_of([1, 2], config.p), measures.split_of(config, FRAC, 0)
    hyper = jax.tree.map(lambda *x: jax.numpy.stack(x), *(Run(config, s).hyper() for s in range(networks)))
    params = jax.jit(jax.vmap(make_program(config).init))(hyper).params
    of_each = jax.jit(jax.vmap(lambda params: measures.measure(config, params, split, keys, 0, draws)))
    yield {"seconds_per_network": median_seconds(lambda: of_each(params), rounds) / networks}


def other_programs(config: "Config", many: int) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """(its name, runs at once, a function that makes it) of each program of tests/reference that can run here."""
    from tests.reference.others import Nnx, PlainJax

    yield "plain JAX by vmap", many, lambda: PlainJax(config, many, with_test=True)
    yield "Flax NNX", 1, lambda: Nnx(config)
    try:
        import torch

        from tests.reference.torch_fast import FastTorch
    except ModuleNotFoundError:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for runs in (1, many):
        yield "PyTorch", runs, lambda runs=runs: FastTorch(config, runs, True, device == "cuda", device)


def other_row(make: Callable[[], Any], runs: int, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Milliseconds of a run-epoch of another program, the test loss included."""
    program = make()
    seconds = median_seconds(lambda: _ready(program.epochs(sizes.steps)), sizes.rounds)
    yield {"ms_per_run_epoch_test_every_1": 1e3 * seconds / (runs * sizes.steps)}


def _ready(losses: Any) -> Any:
    """Losses on the host, whichever program they come from: so what computes them is done."""
    return [None if x is None else x.tolist() for x in losses]


def sweep_seconds(row: dict[str, Any], sizes: Sizes) -> float:
    """How long the whole sweep takes with its evaluations and checkpoints, at the speed of this row of steps."""
    runs, epochs = sizes.sweep
    training = 1e-3 * row[f"ms_per_run_epoch_test_every_{EVAL_EVERY}"] * runs * epochs
    return training + SAVES * row["seconds_of_a_checkpoint"] * runs / row["runs"]


def rows_of(config: "Config", sizes: Sizes, bytes_per_second: float) -> list[Row]:
    """Every row, the most telling first, for the time may not last for all."""
    from jaxgrok.measures.ablations import DRAWS

    def steps(of_runs: Sequence[int]) -> list[Row]:
        cases = [(runs, *precision) for runs in of_runs for precision in PRECISIONS.items()]
        return [
            Row(
                "steps",
                {"precision": name, "runs": runs},
                partial(step_row, replace(config, matmul_precision=precision), runs, sizes, bytes_per_second),
            )
            for runs, name, precision in cases
        ]

    analysis = [
        Row(
            "analysis",
            {"networks": networks, "draws": draws},
            partial(analysis_row, config, networks, draws, sizes.rounds),
        )
        for networks in sizes.networks
        for draws in (0, DRAWS)
    ]
    others = [
        Row("others", {"program": name, "runs": runs}, partial(other_row, make, runs, sizes))
        for name, runs, make in other_programs(config, min(64, max(sizes.runs)))
    ]
    return [*steps(sizes.runs[:2]), *analysis, *others, *steps(sizes.runs[2:])]


def measure(sizes: Sizes, save: Callable[[dict[str, Any]], None]) -> None:
    """Measure every row, as plain values, and save what there is after each. A row that fails, such as a size that does
    not fit, says why. Rows that would begin after `sizes.seconds` are left out and listed."""
    import jax

    from jaxgrok.config import Config

    start, config = time.monotonic(), Config(p=sizes.p, d_model=128 if sizes.p > 50 else 8)
    bytes_per_second, (runs, epochs) = memory_rate(sizes), sizes.sweep
    of_sweep: dict[str, float] = {}
    found: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "bytes_per_second": bytes_per_second,
        "steps": [],
        f"seconds_of_{runs}_runs_of_{epochs}_epochs": of_sweep,
        "analysis": [],
        "others": [],
        "left_out": [],
    }
    for table, about, of_row in rows_of(config, sizes, bytes_per_second):
        if time.monotonic() - start > sizes.seconds:
            found["left_out"].append({"table": table, **about})
            continue
        found[table].append(row := dict(about))
        try:
            for part in of_row():
                row |= part
        except (RuntimeError, ValueError) as error:  # of jax or torch: too large, or not on this machine
            row["failed"] = (str(error) or repr(error)).splitlines()[0][:200]
        if table == "steps" and row["runs"] == runs and "seconds_of_a_checkpoint" in row:
            of_sweep[row["precision"]] = sweep_seconds(row, sizes)
        save(found)
    save(found)
