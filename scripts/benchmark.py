"""Time a training epoch and an analysis beside plain PyTorch versions of the authors' loops (extra `torch`).

Training: p = 113 at fraction 0.3 with the same threads, in turn, so that the machine's moods hit both; medians are
printed. The share is of the best rate that any of the step's matrix products reaches by itself, here and now. Analysis:
every measure of one p = 113 network, and the search for each neuron's frequency.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its idle threads spin beside those of jax

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TORCH_EPOCHS, OUR_EPOCHS = 2, 20


def seconds(f, repeat=1) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        f()
    return (time.perf_counter() - start) / repeat


def our_epoch(eval_every: int):
    """A function that trains OUR_EPOCHS epochs of one mainline run in the sweep's own compiled batch, test loss included."""
    import jax

    from jaxgrok.config import Config
    from jaxgrok.sweeping import compiled
    from jaxgrok.tasks import make_task
    from jaxgrok.training import make_hyper

    config = Config()
    functions = compiled(config, eval_every, tuple(jax.local_devices()[:1]))
    train, test, hyper = jax.tree.map(lambda x: x[None], (*make_task(config).split(0.3, 0), make_hyper(config, 0, 1.0, 1e-3)))
    train, test, hyper = jax.device_put((train, test, hyper), functions.sharding)
    state = functions.init(hyper)

    def epochs():
        nonlocal state
        for _ in range(OUR_EPOCHS // eval_every):
            result = functions.evaluate(state.params, test)
            state, loss, _ = functions.advance(state, train, hyper, eval_every)
        jax.block_until_ready((result, loss))

    return epochs


def their_epoch(threads: int):
    """A function that trains TORCH_EPOCHS epochs of the authors' loop."""
    import torch

    from jaxgrok.config import Config
    from jaxgrok.tasks import make_task
    from tests.reference.torch_loop import Loop, Net

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    parts = make_task(Config()).split(0.3, 0)
    loop = Loop(Net(114), *[(part.tokens, part.targets[:, 0]) for part in parts])
    return lambda: [loop.epoch() for _ in range(TORCH_EPOCHS)]


def matmul_timers() -> dict:
    """{shape: (FLOPs, function)}: the step's matrix products, forward and backward, whole and in the sweep's blocks."""
    import jax
    import jax.numpy as jnp

    from jaxgrok.plan import CPU_BLOCK

    D, M, V = 128, 512, 114
    timers = {}
    for n in (3830, -(-3830 // -(-3830 // CPU_BLOCK))):
        for a, b in ((D, M), (M, D), (D, D), (D, V)):
            for shape in ((n, a, b), (a, n, b)):
                x, y = jnp.ones(shape[:2]), jnp.ones(shape[1:])
                product = jax.jit(jnp.matmul)
                jax.block_until_ready(product(x, y))
                timers[shape] = (2 * n * a * b, lambda product=product, x=x, y=y: jax.block_until_ready(product(x, y)))
    return timers


def analyses() -> dict:
    """{label: function}: every measure of one network, and its neurons' frequencies; at the same size by the authors' loop."""
    import jax
    import numpy as np

    from jaxgrok import fourier, measures
    from jaxgrok.config import Config
    from jaxgrok.network import run_network
    from jaxgrok.training import make_hyper, make_train

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both programs (default: all cores)")
    parser.add_argument("--rounds", type=int, default=7, help="each program is timed this often, in turn (default 7)")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # before jax counts the cores

    import jax

    from jaxgrok.config import Config
    from jaxgrok.plan import epoch_flops, forward_flops

    every, default = our_epoch(1), our_epoch(10)
    programs = {"every": (every, OUR_EPOCHS), "default": (default, OUR_EPOCHS)}
    try:
        programs["torch"] = (their_epoch(args.threads), TORCH_EPOCHS)
    except ModuleNotFoundError:
        print("torch is not installed: pip install -e '.[torch]' to compare", file=sys.stderr)
    products = matmul_timers()
    for f, _ in programs.values():
        f()
    times, rates = {name: [] for name in programs}, {shape: [] for shape in products}
    for _ in range(args.rounds):
        for name, (f, epochs) in programs.items():
            times[name].append(seconds(f) / epochs)
        for shape, (flops, f) in products.items():
            rates[shape].append(flops / seconds(f, 5))
    ms = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    best, shape = max((statistics.median(values), shape) for shape, values in rates.items())
    step, test = epoch_flops(Config(), 3830), forward_flops(Config(), 12769 - 3830)
    flops = {"every": step + test, "default": step + test / 10}
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {args.threads} threads, medians of {args.rounds}")
    print(f"best matrix product: {best / 1e9:.0f} GFLOP/s at {' x '.join(map(str, shape))}")
    for name, label in (("every", "ours, test loss every epoch"), ("default", "ours, test loss every 10 epochs")):
        rate = flops[name] / ms[name] * 1e3
        ratio = f", {ms['torch'] / ms[name]:.1f} times as fast as PyTorch" if "torch" in ms else ""
        print(f"{label}: {ms[name]:.1f} ms per run-epoch, {flops[name] / 1e9:.2f} GFLOP, {rate / best:.2f} of the best rate{ratio}")
    if "torch" in ms:
        print(f"PyTorch, the authors' loop (test loss every epoch): {ms['torch']:.0f} ms per run-epoch")
    for label, f in analyses().items():
        f()
        print(f"{label}: {1e3 * statistics.median(seconds(f) for _ in range(args.rounds)):.0f} ms")
    print(f"peak memory of all of this: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
