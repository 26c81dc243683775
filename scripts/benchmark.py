"""Time a training step of each task, and an analysis, beside plain PyTorch versions of the authors' loops (extra `torch`).

Training: both programs with the same threads, in turn, so that the machine's moods hit both; medians are printed. Fresh data
are made within the step. FLOPs are of matrix products alone: ours as pruned, theirs with every position through everything.
The share is of the best rate that any of the step's own dense products reaches by itself, here and now. Analysis: every
measure of one p = 113 network, and the search for each neuron's frequency.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its idle threads spin beside those of jax

import argparse
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

OUR_STEPS, THEIR_STEPS, PRODUCTS = 20, 4, 10  # in one timing


@dataclass(frozen=True)
class Case:
    """A run to time. size: of its train set, None: unlimited. evaluate_every: steps between our evaluations, a row each; None: never.

    batch: what makes the PyTorch loop's fresh data; reads: the positions at which that loop reads, None: the task's.
    """

    fields: dict
    size: float | None = None
    evaluate_every: tuple = (None, 10)
    batch: str | None = None
    reads: tuple[int, int] | None = None

    @property
    def config(self):
        from jaxgrok.tasks import make_config

        return make_config(**self.fields)

    @property
    def task(self):
        from jaxgrok.tasks import make_task

        return make_task(self.config)

    @property
    def n_examples(self) -> int:
        """Of one step."""
        from jaxgrok.tasks import step_examples

        return step_examples(self.config, self.task.n_train(self.size))


CASES = {
    "add": Case({"task": "add"}, 0.3, (1, 10, None)),  # the authors' loop evaluates at every step
    "addition5": Case({"task": "addition5"}, batch="addition_batch"),
    "induction": Case({"task": "induction", "residual_factor": 2.0}, batch="induction_batch", reads=(0, 84)),
    "skip_trigram": Case({"task": "skip_trigram"}, batch="skip_trigram_batch"),
    "addition5-700": Case({"task": "addition5"}, 700),
}
NAMES = (*CASES, "analysis")


def seconds(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def medians(functions: dict, rounds: int) -> dict:
    """{name: median seconds} of functions that are called in turn, after a first call of each."""
    for f in functions.values():
        f()
    times = [{name: seconds(f) for name, f in functions.items()} for _ in range(rounds)]
    return {name: statistics.median(row[name] for row in times) for name in functions}


def unpruned_flops(config, n_examples: int) -> float:
    """`plan.forward_flops` of a network that takes every position through every layer and the unembedding."""
    from jaxgrok.tasks import make_task

    task, D, M = make_task(config), config.d_model, config.mlp_width
    layer = 8 * D * D + 4 * task.n_ctx * D + 4 * D * M
    return n_examples * task.n_ctx * (config.n_layers * layer + 2 * D * task.d_vocab_out)


def our_steps(case: Case, evaluate_every: int | None):
    """A function that trains OUR_STEPS steps of one run in the sweep's own compiled batch."""
    import jax
    import numpy as np

    from jaxgrok.training.run import make_hyper
    from jaxgrok.training.sweep import compiled

    length = evaluate_every or 10
    functions = compiled(case.config, length, tuple(jax.local_devices()[:1]))
    rows = (*case.task.split(case.size, 0), make_hyper(case.config, 0, 1.0, 1e-3))
    train, test, hyper = jax.device_put(jax.tree.map(lambda x: np.asarray(x)[None], rows), functions.sharding)
    state = functions.init(hyper)

    def steps():
        nonlocal state
        result = None
        for _ in range(OUR_STEPS // length):
            if evaluate_every:
                result = functions.evaluate(state.params, test)
            state, loss, _ = functions.advance(state, train, hyper, length)
        jax.block_until_ready((result, loss))

    return steps


def their_steps(case: Case, threads: int):
    """A function that trains THEIR_STEPS steps of the authors' loop."""
    import torch

    from tests.reference import torch_loop

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config, task = case.config, case.task
    train, test = task.split(case.size, 0)
    if config.modular:
        net = torch_loop.Net(task.d_vocab)
        step = torch_loop.Loop(net, *[(part.tokens, part.targets[:, 0]) for part in (train, test)]).epoch
    else:
        sizes = (task.d_vocab, task.d_vocab_out, task.n_ctx, config.n_layers, config.d_model, config.n_heads)
        net = torch_loop.SequenceNet(*sizes, attn_only=config.arch == "attn_only", residual_factor=config.residual_factor)
        loop = torch_loop.SequenceLoop(net, case.reads or task.read, betas=(config.b1, config.b2))
        if case.batch:
            step = lambda: loop.step(*getattr(torch_loop, case.batch)(case.n_examples))  # noqa: E731
        else:
            tokens, targets = (torch.as_tensor(x, dtype=torch.long) for x in (train.tokens, train.targets))
            counts = torch.ones_like(targets, dtype=torch.bool)
            step = lambda: loop.step(tokens, targets, counts)  # noqa: E731
    return lambda: [step() for _ in range(THEIR_STEPS)]


def products(case: Case) -> dict:
    """{shape: function}: the step's dense products, forward and backward, whole and in the sweep's blocks, PRODUCTS at a time."""
    import jax
    import jax.numpy as jnp

    from jaxgrok.training.plan import block_of

    config, task, n = case.config, case.task, case.n_examples
    D, M, V = config.d_model, config.mlp_width, task.d_vocab_out
    positions = task.n_ctx if config.n_layers > 1 else task.read[1] - task.read[0]
    product, functions = jax.jit(jnp.matmul), {}
    for examples in {n, -(-n // -(-n // block_of(config)))}:
        for a, b in {(D, D), (D, V), *([(D, M), (M, D)] if M else [])}:
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


def table_rows(name: str, rounds: int, threads: int) -> tuple[list, str]:
    """The rows of one case, and a line on its best product."""
    from jaxgrok.training.plan import epoch_flops, forward_flops

    case = CASES[name]
    config, n_train, n_test = case.config, case.task.n_train(case.size), case.task.n_test(case.size)
    shapes = products(case)
    programs = {every: our_steps(case, every) for every in case.evaluate_every}
    if has_torch():
        programs["torch"] = their_steps(case, threads)
    times = medians(programs | shapes, rounds)
    best, shape = max((PRODUCTS * 2 * a * b * c / times[a, b, c], (a, b, c)) for a, b, c in shapes)
    their_time = times["torch"] / THEIR_STEPS if "torch" in programs else None
    their_flops = 3 * unpruned_flops(config, case.n_examples) + (unpruned_flops(config, n_test) if config.modular else 0)
    rows = []
    for every in case.evaluate_every:
        step, flops = times[every] / OUR_STEPS, epoch_flops(config, n_train) + (forward_flops(config, n_test) / every if every else 0)
        row = [name, f"ours, test every {every or '-'}", f"{1e3 * step:.2f}", f"{flops / 1e9:.3f}", f"{flops / step / best:.2f}"]
        fewer = their_flops / flops
        faster = their_time and their_time / step
        rows.append([*row, f"{fewer:.2f}", *([f"{faster:.2f}", f"{faster / fewer:.2f}"] if faster else ["-", "-"])])
    if their_time:
        label = "PyTorch, test every 1" if config.modular else "PyTorch, test every -"
        rows.append([name, label, f"{1e3 * their_time:.2f}", f"{their_flops / 1e9:.3f}", f"{their_flops / their_time / best:.2f}", *"---"])
    return rows, f"{name}: best dense product {best / 1e9:.0f} GFLOP/s at {' x '.join(map(str, shape))}"


def analyses() -> dict:
    """{label: function}: every measure of one network, and its neurons' frequencies; at the same size by the authors' loop."""
    import jax
    import numpy as np

    from jaxgrok import measures
    from jaxgrok.config import Config
    from jaxgrok.measures import fourier
    from jaxgrok.measures.all_pairs import run_network
    from jaxgrok.training.run import make_hyper, make_train

    config = Config()
    params = jax.jit(make_train(config).init)(make_hyper(config, 0, 1.0, 1e-3)).params
    # As many keys as a trained network has: what is measured on them costs what it costs there.
    split, keys = measures.split_of(config, 0.3, 0), fourier.mask_of([14, 35, 41, 42, 52], config.p)
    neurons = jax.jit(lambda params: run_network(config, params).neurons)(params)
    search = jax.jit(lambda neurons: fourier.fit_neurons(fourier.neuron_blocks(neurons)))
    functions = {
        "ours, every measure of one network": lambda: jax.block_until_ready(measures.all(config, params, split, keys)),
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=names, default=NAMES, help=f"a comma list of {', '.join(NAMES)} (default all)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both programs (default: all cores)")
    parser.add_argument("--rounds", type=int, default=7, help="each program is timed this often, in turn (default 7)")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # before jax counts the cores

    import jax

    from jaxgrok.cli.show import print_table

    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {args.threads} threads, medians of {args.rounds}")
    if not has_torch():
        print("torch is not installed: pip install -e '.[torch]' to compare", file=sys.stderr)
    timed = [table_rows(name, args.rounds, args.threads) for name in args.task if name in CASES]
    if timed:
        header = ["task", "program", "ms per step", "GFLOP", "share of best", "fewer FLOPs", "times as fast", "faster / fewer"]
        print_table(header, [row for rows, _ in timed for row in rows])
        print(*(line for _, line in timed), sep="\n")
    if "analysis" in args.task:
        for label, f in analyses().items():
            print(f"{label}: {1e3 * medians({label: f}, args.rounds)[label]:.0f} ms")
    print(f"peak memory of all of this: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
