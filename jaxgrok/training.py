"""One training run as pure functions: full-batch AdamW with the published schedule.

Everything here is written for one run; `sweeping` maps it over many. A run's numbers (`Hyper`) are traced: other seeds,
weight decays and learning rates compile nothing new. State is carried, curves are returned.

Epochs: entry e of a curve is the loss after e updates; N epochs give entries 0..N-1 and weights at N.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgrok.config import BadInput, Config
from jaxgrok.loss import cross_entropy, is_correct
from jaxgrok.model import make_model
from jaxgrok.schedule import default_eval_every, schedule
from jaxgrok.tasks import Examples, make_task

INIT_STREAM = 0  # fold_in constant of the initial weights: a new consumer of randomness takes the next number


class Hyper(NamedTuple):
    """A run's traced numbers, scalars: seed of the initial weights (int32), weight decay and learning rate (config dtype)."""

    seed: jax.Array
    weight_decay: jax.Array
    lr: jax.Array


class TrainState(NamedTuple):
    """What a run carries from epoch to epoch: parameters, optax state, epoch (int32, updates done)."""

    params: dict
    opt_state: tuple
    epoch: jax.Array


class Trainer(NamedTuple):
    """The pure functions of one run, not yet compiled.

    init(hyper) -> TrainState at epoch 0
    start(params, hyper) -> the same, from given parameters
    advance(state, train, hyper, n_steps) -> (state, loss [max_steps], accuracy [max_steps]); entries past n_steps are NaN
    evaluate(params, examples) -> (mean loss, accuracy)
    """

    init: Callable
    start: Callable
    advance: Callable
    evaluate: Callable


def make_hyper(config: Config, seed: int, weight_decay: float, lr: float) -> Hyper:
    """The traced numbers of one run, in the config's dtype."""
    dtype = np.dtype(config.dtype)
    return Hyper(np.int32(seed), dtype.type(weight_decay), dtype.type(lr))


def make_optimizer(config: Config, hyper: Hyper) -> optax.GradientTransformation:
    """AdamW with decay on every parameter and lr * min(step / warmup_steps, 1), so that the first step has rate 0.

    Built inside the mapped function, from traced numbers. The schedule casts the step itself: an integer division would
    be float32 even under x64.
    """

    def rate(step):
        return hyper.lr * jnp.minimum(step.astype(hyper.lr.dtype) / max(config.warmup_steps, 1), 1)

    return optax.adamw(rate if config.warmup_steps else hyper.lr, config.b1, config.b2, config.eps, weight_decay=hyper.weight_decay)


def sum_over_blocks(f: Callable, examples: Examples, block: int | None):
    """Sum a function of examples, which returns a pytree of sums, over blocks of at most `block` of them (None: all at once).

    On a CPU the activations of a block stay in cache, which makes a p = 113 epoch 1.2 times as fast.
    """
    n = len(examples.tokens)
    if block is None or n <= block:
        return f(examples)
    size = -(-n // -(-n // block))
    whole = n // size * size
    first, rest = (jax.tree.map(lambda x, part=part: x[part], examples) for part in (slice(whole), slice(whole, None)))
    blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), first)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, jax.tree.map(lambda x: x[0], blocks)))
    total, _ = jax.lax.scan(lambda total, examples: (jax.tree.map(jnp.add, total, f(examples)), None), zero, blocks)
    return total if whole == n else jax.tree.map(jnp.add, total, f(rest))


@functools.cache
def make_train(config: Config, max_steps: int = 10, block: int | None = None) -> Trainer:
    """The pure functions of one run of this config; `advance` takes at most max_steps at a time.

    block: examples that pass through the network at once (`sum_over_blocks`). It changes results by rounding alone.
    Raises BadInput where the config needs float64 and jax has x64 off.
    """
    if config.needs_x64 and not jax.config.jax_enable_x64:
        field = "dtype" if config.dtype == "float64" else "loss"
        raise BadInput(field, "float64", 'float64 only after jax.config.update("jax_enable_x64", True)')
    task = make_task(config)
    model = make_model(config, task)

    def sums(params, examples: Examples):
        """(summed loss, right answers) over examples and their read positions."""
        logits, _ = model.apply({"params": params}, examples.tokens)
        loss = cross_entropy(logits, examples.targets, config.loss)
        return loss.sum(), is_correct(logits, examples.targets).sum(dtype=loss.dtype)

    def evaluate(params, examples: Examples):
        total = sum_over_blocks(functools.partial(sums, params), examples, block)
        return jax.tree.map(lambda x: x / examples.targets.size, total)

    def start(params, hyper: Hyper) -> TrainState:
        return TrainState(params, make_optimizer(config, hyper).init(params), jnp.int32(0))

    def init(hyper: Hyper) -> TrainState:
        key = jax.random.fold_in(jax.random.key(hyper.seed), INIT_STREAM)
        tokens = jnp.zeros((1, task.n_ctx), jnp.int32)
        return start(model.init(key, tokens)["params"], hyper)

    def step(state: TrainState, train: Examples, hyper: Hyper):
        total = sum_over_blocks(functools.partial(jax.value_and_grad(sums, has_aux=True), state.params), train, block)
        (loss, accuracy), grads = jax.tree.map(lambda x: x / train.targets.size, total)
        updates, opt_state = make_optimizer(config, hyper).update(grads, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state, state.epoch + 1), loss, accuracy

    def advance(state: TrainState, train: Examples, hyper: Hyper, n_steps):
        loss_dtype = config.loss if config.loss in ("float32", "float64") else config.dtype

        def body(i, carry):
            state, losses, accuracies = carry
            state, loss, accuracy = step(state, train, hyper)
            return state, losses.at[i].set(loss), accuracies.at[i].set(accuracy)

        blank = jnp.full((max_steps,), jnp.nan, loss_dtype)
        return jax.lax.fori_loop(0, n_steps, body, (state, blank, blank))

    def at_precision(f):
        @functools.wraps(f)
        def traced(*args):
            with jax.default_matmul_precision(config.matmul_precision):
                return f(*args)

        return traced

    return Trainer(init, start, at_precision(advance), at_precision(evaluate))


class Curves(NamedTuple):
    """One run's curves: train_loss and train_acc [epochs] at every epoch; test_loss and test_acc at `epoch_eval`."""

    train_loss: np.ndarray
    train_acc: np.ndarray
    test_loss: np.ndarray
    test_acc: np.ndarray
    epoch_eval: np.ndarray


def train(
    config: Config = Config(),
    *,
    seed: int = 0,
    weight_decay: float = 1.0,
    lr: float = 1e-3,
    frac: float = 0.3,
    epochs: int = 40_000,
    split_seed: int | None = None,
    eval_every: int | None = None,
    params: dict | None = None,
) -> tuple[TrainState, Curves]:
    """Train one run in memory and return its final state and its curves; `sweep` is for many, with files.

    params: start from these instead of drawing from the seed. The split is the seed's unless split_seed is given.
    """
    every = eval_every or default_eval_every(epochs)
    trainer = make_train(config, every)
    hyper = make_hyper(config, seed, weight_decay, lr)
    train_set, test_set = make_task(config).split(frac, seed, split_seed)
    advance, evaluate = jax.jit(trainer.advance, donate_argnums=0), jax.jit(trainer.evaluate)
    # Copied, because `advance` donates its state: the caller's arrays must outlive it.
    state = jax.jit(trainer.init)(hyper) if params is None else trainer.start(jax.tree.map(jnp.array, params), hyper)
    evals = schedule(epochs, every)
    rows = []
    for epoch, stop in zip(evals, [*evals[1:], epochs]):
        test = evaluate(state.params, test_set)
        state, loss, accuracy = advance(state, train_set, hyper, stop - epoch)
        rows.append((loss[: stop - epoch], accuracy[: stop - epoch], *test))
    loss, accuracy, test_loss, test_acc = (list(map(np.asarray, column)) for column in zip(*rows))
    return state, Curves(np.concatenate(loss), np.concatenate(accuracy), np.array(test_loss), np.array(test_acc), np.array(evals))
