"""Time a training step of each task, and an analysis, against plain PyTorch versions of the authors' loops, and the
mainline against other programs.

Training: both programs run with the same number of threads and in turn, so that other load on the machine slows both;
medians are printed. Fresh data are made within the step. FLOPs are of matrix products alone: for ours as pruned, for
theirs with every position through every layer. `share of best` is the FLOP rate of a step relative to the best rate
that any of the step's own dense products reaches by itself, here and now. Others: the mainline as it is written
elsewhere (tests/reference/others.py), in milliseconds for an epoch of one run. Analysis: every measure of one p = 113
network, and the search for each neuron's frequency. The PyTorch versions need the extra `torch`.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its idle threads spin beside those of jax

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxgrok.config import Config
    from jaxgrok.tasks import Task

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

OUR_STEPS, THEIR_STEPS, PRODUCTS = 20, 4, 10  # in one timing
SIDE_BY_SIDE = 2  # runs, where programs train several at once


@dataclass(frozen=True)
class Case:
    """A run to time.

    size: of its train set; None means unlimited data.
    evaluate_every: steps between our evaluations, with a row of the table for each; None means never.
    batch: the function of torch_loop that makes fresh data. reads: the positions at which the PyTorch loop reads; None
        means the task's.
    """

    fields: dict[str, Any]
    size: float | None = None
    evaluate_every: tuple[int | None, ...] = (None, 10)
    batch: str | None = None
    reads: tuple[int, int] | None = None

    @property
    def config(self) -> "Config":
        from jaxgrok.tasks import make_config

        return make_config(**self.fields)

    @property
    def task(self) -> "Task":
        from jaxgrok.tasks import make_task

        return make_task(self.config)

    @property
    def n_examples(self) -> int:
        """The number of examples of one step."""
        from jaxgrok.tasks import step_examples

        return step_examples(self.config, self.task.n_train(self.size))


CASES = {
    "add": Case({"task": "add"}, 0.3, (1, 10, None)),  # the authors' loop evaluates at every step
    "addition5": Case({"task": "addition5"}, batch="addition_batch"),
    "induction": Case({"task": "induction", "residual_factor": 2.0}, batch="induction_batch", reads=(0, 84)),
    "skip_trigram": Case({"task": "skip_trigram"}, batch="skip_trigram_batch"),
    "addition5-700": Case({"task": "addition5"}, 700),
}
NAMES = (*CASES, "others", "analysis")
MOST = 1_000_000  # of threads or rounds


def seconds(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def medians(functions: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """{name: median seconds} of functions that are called in turn, after a first call of each."""
    for f in functions.values():
        f()
    times = [{name: seconds(f) for name, f in functions.items()} for _ in range(rounds)]
    return {name: statistics.median(row[name] for row in times) for name in functions}


def unpruned_flops(config: "Config", n_examples: int) -> float:
    """`plan.forward_flops` of a network that takes every position through every layer and the unembedding."""
    from jaxgrok.tasks import make_task

    task, D, M = make_task(config), config.d_model, config.mlp_width
    layer = 8 * D * D + 4 * task.n_ctx * D + 4 * D * M
    return n_examples * task.n_ctx * (config.n_layers * layer + 2 * D * task.d_vocab_out)


def our_steps(case: Case, evaluate_every: int | None, runs: int = 1) -> Callable[[], Any]:
    """A function that trains OUR_STEPS steps of each run: one alone, or several on as many devices as there are."""
    import jax

    from scripts.benchmark_gpu import trainer

    advance, _ = trainer(case.config, case.size, runs, evaluate_every, OUR_STEPS, jax.local_devices()[:runs])
    return lambda: jax.block_until_ready(advance())


def their_steps(case: Case, threads: int) -> Callable[[], Any]:
    """A function that trains THEIR_STEPS steps of the authors' loop."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = _pairs_step(case) if case.config.modular else _sequences_step(case)
    return lambda: [step() for _ in range(THEIR_STEPS)]


def _pairs_step(case: Case) -> Callable[[], Any]:
    """A step of the authors' loop on the pairs of a modular task; it evaluates too."""
    from tests.reference import torch_loop

    train, test = case.task.split(case.size, 0)
    assert train is not None
    pairs = [(part.tokens, part.targets[:, 0]) for part in (train, test)]
    return torch_loop.Loop(torch_loop.Net(case.task.d_vocab), pairs[0], pairs[1]).epoch


def _sequences_step(case: Case) -> Callable[[], Any]:
    """A step of the authors' loop on sequences, fresh ones or all train examples."""
    import torch

    from tests.reference import torch_loop

    config, task = case.config, case.task
    sizes = (task.d_vocab, task.d_vocab_out, task.n_ctx, config.n_layers, config.d_model, config.n_heads)
    options = {"attn_only": config.arch == "attn_only", "residual_factor": config.residual_factor}
    net = torch_loop.SequenceNet(*sizes, **options)
    loop = torch_loop.SequenceLoop(net, case.reads or task.read, betas=(config.b1, config.b2))
    train, _ = task.split(case.size, 0)
    if train is None:
        fresh = getattr(torch_loop, str(case.batch))
        return lambda: loop.step(*fresh(case.n_examples))
    tokens, targets = (torch.as_tensor(x, dtype=torch.long) for x in (train.tokens, train.targets))
    counts = torch.ones_like(targets, dtype=torch.bool)
    return lambda: loop.step(tokens, targets, counts)


def products(case: Case) -> dict[tuple[int, int, int], Callable[[], Any]]:
    """{shape: function} for the step's dense products, forward and backward, whole and in the sweep's blocks. Each
    function computes PRODUCTS of them."""
    import jax
    import jax.numpy as jnp

    from jaxgrok.training.plan import block_of

    config, task, n = case.config, case.task, case.n_examples
    D, M, V = config.d_model, config.mlp_width, task.d_vocab_out
    positions = task.n_ctx if config.n_layers > 1 else task.read[1] - task.read[0]
    product, functions = jax.jit(jnp.matmul), {}
    for examples in {n, -(-n // -(-n // block_of(config)))}:
        for a, b in {(D, D), (D, V), *([(D, M), (M, D), (M, V)] if M else [])}:
            for shape in ((examples * positions, a, b), (a, examples * positions, b)):
                x, y = jnp.ones(shape[:2]), jnp.ones(shape[1:])
                functions[shape] = lambda x=x, y=y: jax.block_until_ready([product(x, y) for _ in range(PRODUCTS)])
    return functions


def has_torch() -> bool:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def table_rows(name: str, rounds: int, threads: int) -> tuple[list[list[str]], str]:
    """The rows of one case, and a line about its best product."""
    from jaxgrok.training.plan import epoch_flops, forward_flops

    case = CASES[name]
    config, n_train, n_test = case.config, case.task.n_train(case.size), case.task.n_test(case.size)
    shapes = products(case)
    ours = [(runs, every) for runs in (1, SIDE_BY_SIDE) for every in case.evaluate_every]
    programs: dict[Any, Callable[[], Any]] = {(runs, every): our_steps(case, every, runs) for runs, every in ours}
    if has_torch():
        programs["torch"] = their_steps(case, threads)
    times = medians(programs | shapes, rounds)
    best, shape = max((PRODUCTS * 2 * a * b * c / times[a, b, c], (a, b, c)) for a, b, c in shapes)
    their_time = times["torch"] / THEIR_STEPS if "torch" in programs else None
    their_flops = 3 * unpruned_flops(config, case.n_examples)
    their_flops += unpruned_flops(config, n_test) if config.modular else 0  # their loop evaluates at every step
    rows = []
    for runs, every in ours:
        step, flops = times[runs, every] / (runs * OUR_STEPS), epoch_flops(config, n_train)
        flops += 0 if every is None else forward_flops(config, n_test) / every
        fewer = their_flops / flops
        speed = ["-", "-"]
        if their_time is not None:
            faster = their_time / step
            speed = [f"{faster:.2f}", f"{faster / fewer:.2f}"]
        together = "alone" if runs == 1 else f"{runs} runs"
        label = f"ours, {together}, test every {'-' if every is None else every}"
        rows.append([name, label, *_step_cells(step, flops, best), f"{fewer:.2f}", *speed])
    if their_time is not None:
        label = "PyTorch, test every 1" if config.modular else "PyTorch, test every -"
        rows.append([name, label, *_step_cells(their_time, their_flops, best), "-", "-", "-"])
    return rows, f"{name}: best dense product {best / 1e9:.0f} GFLOP/s at {' x '.join(map(str, shape))}"


def _step_cells(seconds_per_step: float, flops: float, best: float) -> list[str]:
    """A step's milliseconds, its GFLOP, and its share of the best rate."""
    return [f"{1e3 * seconds_per_step:.2f}", f"{flops / 1e9:.3f}", f"{flops / seconds_per_step / best:.2f}"]


def other_programs(threads: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """{label: (function, the run-epochs that one call of it trains)}: ours, and the mainline of others."""
    from jaxgrok.config import Config
    from tests.reference.others import Nnx, PlainJax

    add, config, many = CASES["add"], Config(), SIDE_BY_SIDE
    programs: dict[str, tuple[Callable[[], Any], int]] = {}
    for every in (1, 10):
        programs[f"ours, a run alone, test every {every}"] = our_steps(add, every), OUR_STEPS
        programs[f"ours, {many} runs, test every {every}"] = our_steps(add, every, many), many * OUR_STEPS
    plain, nnx = PlainJax(config, many, with_test=True), Nnx(config)
    programs[f"plain JAX, {many} runs by vmap, test every 1"] = partial(plain.epochs, THEIR_STEPS), many * THEIR_STEPS
    programs["Flax NNX, a run alone, test every 1"] = partial(nnx.epochs, THEIR_STEPS), THEIR_STEPS
    if has_torch():
        from tests.reference.torch_fast import FastTorch

        programs["authors' loop, a run alone, test every 1"] = their_steps(add, threads), THEIR_STEPS
        for runs, label in ((1, "a run alone"), (many, f"{many} runs by torch.func")):
            fast = partial(FastTorch(config, runs, with_test=True).epochs, THEIR_STEPS)
            programs[f"PyTorch, compiled, {label}, test every 1"] = fast, runs * THEIR_STEPS
    return programs


def print_others(rounds: int, threads: int) -> None:
    """Print the time of a run-epoch of each program, and how many times as fast ours is."""
    from jaxgrok.cli.show import print_table

    programs = other_programs(threads)
    times = medians({label: f for label, (f, _) in programs.items()}, rounds)
    each = {label: times[label] / programs[label][1] for label in programs}
    ours = [min(each[x] for x in each if x.startswith("ours") and x.endswith(f" {every}")) for every in (1, 10)]
    rows = [[label, f"{1e3 * time:.1f}", *(f"{time / best:.2f}" for best in ours)] for label, time in each.items()]
    print_table(["program", "ms per run-epoch", "ours, test every 1", "ours, test every 10"], rows)


def analyses() -> dict[str, Callable[[], Any]]:
    """{label: function} for every measure of one network, for its neurons' frequencies, and for the same frequencies by
    the authors' loop."""
    import jax
    import numpy as np

    from jaxgrok import measures
    from jaxgrok.config import Config, Run
    from jaxgrok.measures import fourier
    from jaxgrok.measures.all_pairs import run_network
    from jaxgrok.training.run import make_program

    config = Config()
    params = jax.jit(make_program(config).init)(Run(config).hyper()).params
    # As many keys as a trained network has: what is measured on them costs what it costs there.
    split, keys = measures.split_of(config, 0.3, 0), fourier.mask_of([14, 35, 41, 42, 52], config.p)
    neurons = jax.jit(lambda params: run_network(config, params).neurons)(params)
    search = jax.jit(lambda neurons: fourier.fit_neurons(fourier.neuron_blocks(neurons)))
    functions = {
        "ours, every measure of one network": lambda: jax.block_until_ready(
            measures.all(config, params, split, keys, 0, 0)
        ),
        "the same with random controls": lambda: jax.block_until_ready(measures.all(config, params, split, keys)),
        "ours, the frequency of each neuron": lambda: jax.block_until_ready(search(neurons)),
    }
    try:
        import torch

        from tests.reference.torch_loop import best_frequencies

        same = torch.from_numpy(np.array(neurons).reshape(config.p**2, -1))
        functions["authors' loop, the frequency of each neuron"] = lambda: best_frequencies(same, config.p)
    except ModuleNotFoundError:
        pass
    return functions


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}; one of {', '.join(NAMES)}")
    return chosen


def positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:10]) <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r}; a whole number from 1 to {MOST:,}")
    return int(text)


def measure_gpu(path: Path, toy: bool) -> int:
    """Write what scripts/benchmark_gpu.py measures, after each row what there is."""
    from jaxgrok.atomic import replace_text
    from scripts.benchmark_gpu import TOY, Sizes, measure

    measure(TOY if toy else Sizes(), lambda found: replace_text(path, json.dumps(found, indent=1) + "\n"))
    print(f"written: {path}")
    return 0


def main() -> int:
    from jaxgrok.cli.parser import Parser

    parser = Parser(description=__doc__)
    parser.add_argument("--task", type=names, default=NAMES, help=f"a comma list of {', '.join(NAMES)} (default all)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=positive, default=cores, help="of each program (default: all cores)")
    parser.add_argument("--rounds", type=positive, default=7, help="timings of each program, in turn (default 7)")
    gpu = "time the mainline on this machine's accelerator instead (scripts/benchmark_gpu.py), and write FILE, a JSON"
    parser.add_argument("--gpu", type=Path, metavar="FILE", help=gpu)
    parser.add_argument("--toy", action="store_true", help="with --gpu: tiny sizes, to see that it runs")
    args = parser.parse_args()
    if args.toy and args.gpu is None:
        parser.error("argument --toy: accepted: with --gpu")
    if args.gpu is not None:
        if not args.gpu.absolute().parent.is_dir() or args.gpu.is_dir():
            parser.error(f"argument --gpu: got {str(args.gpu)!r}; accepted: a file in a directory that exists")
        return measure_gpu(args.gpu, args.toy)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # before jax counts the cores

    import jax

    from jaxgrok.cli.machine import spread_over_cores
    from jaxgrok.cli.show import print_table

    spread_over_cores()
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {args.threads} threads, medians of {args.rounds}")
    if not has_torch():
        print("torch is not installed: pip install -e '.[torch]' to compare", file=sys.stderr)
    timed = [table_rows(name, args.rounds, args.threads) for name in args.task if name in CASES]
    if timed:
        header = ["task", "program", "ms per run-step", "GFLOP", "share of best"]
        print_table(
            [*header, "fewer FLOPs", "times as fast", "faster / fewer"], [row for rows, _ in timed for row in rows]
        )
        print(*(line for _, line in timed), sep="\n")
    if "others" in args.task:
        print_others(args.rounds, args.threads)
    if "analysis" in args.task:
        for label, f in analyses().items():
            print(f"{label}: {1e3 * medians({label: f}, args.rounds)[label]:.0f} ms")
    print(f"peak memory of all of this: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    return 0


if __name__ == "__main__":
    from jaxgrok import stopping

    sys.exit(stopping.status_of(main, until_exit=True))
