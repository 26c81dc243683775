"""One training run as pure functions: AdamW with the published schedule, on all examples, minibatches or fresh data.

Everything here is written for one run; `sweeping` maps it over many. A run's numbers (`Hyper`) are traced: other seeds,
weight decays and learning rates compile nothing new. State is carried, curves are returned.

Epochs count updates: entry e of a curve is the loss after e updates, on the examples of update e; N epochs give entries
0..N-1 and weights at N. A step's examples follow from the run's seed and the step alone.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgrok.config import BadInput, Config
from jaxgrok.nets.loss import cross_entropy, is_correct
from jaxgrok.nets.model import make_model
from jaxgrok.store.schedule import default_eval_every, schedule
from jaxgrok.tasks import Examples, make_task, step_examples

# fold_in constants: a new consumer takes 5; 2 are listed examples (tasks/drawn.py), 4 the heads' sequences.
INIT_STREAM, FRESH_STREAM, DROPOUT_STREAM = 0, 1, 3


class Hyper(NamedTuple):
    """A run's traced numbers, scalars: seed of the initial weights and dropout, and of fresh data (int32); weight decay (or the
    strength of another regulariser), learning rate and the factor of every initial weight (config dtype)."""

    seed: jax.Array
    data_seed: jax.Array
    weight_decay: jax.Array
    lr: jax.Array
    init_scale: jax.Array


class Scores(NamedTuple):
    """Of a network on examples: mean loss and accuracy of the targets that the loss counts, the share of examples with all of
    those right; and the loss and accuracy of each part [parts] (NaN for a part without a target)."""

    loss: jax.Array
    accuracy: jax.Array
    answer_accuracy: jax.Array
    part_loss: jax.Array
    part_accuracy: jax.Array


class TrainState(NamedTuple):
    """What a run carries from epoch to epoch: parameters, optax state, epoch (int32, updates done)."""

    params: dict
    opt_state: tuple
    epoch: jax.Array


class Trainer(NamedTuple):
    """The pure functions of one run, not yet compiled.

    init(hyper) -> TrainState at epoch 0
    start(params, hyper) -> the same, from given parameters
    advance(state, train, hyper, n_steps) -> (state, loss [max_steps], accuracy [max_steps]); entries past n_steps are NaN.
    train None: fresh examples every step
    evaluate(params, examples) -> Scores
    """

    init: Callable
    start: Callable
    advance: Callable
    evaluate: Callable


def make_hyper(config: Config, seed: int, weight_decay: float, lr: float, data_seed: int | None = None, init_scale: float = 1.0) -> Hyper:
    """The traced numbers of one run, in the config's dtype; data_seed None: the run's seed."""
    number = np.dtype(config.dtype).type
    data_seed = seed if data_seed is None else data_seed
    return Hyper(np.int32(seed), np.int32(data_seed), number(weight_decay), number(lr), number(init_scale))


def make_optimizer(config: Config, hyper: Hyper) -> optax.GradientTransformation:
    """AdamW with decay on every parameter and lr * min(step / warmup_steps, 1), so that the first step has rate 0; or another
    optimiser and regulariser of the config. l2 adds wd / 2 |w|^2 to the loss, l1 wd |w|_1; recorded losses are without.

    Built inside the mapped function, from traced numbers. The schedule casts the step itself: an integer division would
    be float32 even under x64.
    """

    def rate(step):
        return hyper.lr * jnp.minimum(step.astype(hyper.lr.dtype) / max(config.warmup_steps, 1), 1)

    def add_l1(grads, params):
        return jax.tree.map(lambda g, w: g + hyper.weight_decay * jnp.sign(w), grads, params)

    decayed = optax.add_decayed_weights(hyper.weight_decay)
    in_loss = {"l2": [decayed], "l1": [optax.stateless(add_l1)]}.get(config.regulariser, [])
    direction = optax.scale_by_adam(config.b1, config.b2, config.eps) if config.optimizer == "adam" else optax.trace(config.b1)
    decoupled = [decayed] if config.regulariser == "weight_decay" else []
    return optax.chain(*in_loss, direction, *decoupled, optax.scale_by_learning_rate(rate if config.warmup_steps else hyper.lr))


def sum_over_blocks(f: Callable, examples, block: int | None):
    """Sum a function of examples, any pytree [N, ...], which returns a pytree of sums, over blocks of at most `block` of them
    (None: all at once).

    On a CPU the activations of a block stay in cache, which makes a p = 113 epoch 1.2 times as fast.
    """
    n = len(jax.tree.leaves(examples)[0])
    if block is None or n <= block:
        return f(examples)
    size = -(-n // -(-n // block))
    whole = n // size * size
    first, rest = (jax.tree.map(lambda x, part=part: x[part], examples) for part in (slice(whole), slice(whole, None)))
    blocks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), first)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, jax.tree.map(lambda x: x[0], blocks)))
    total, _ = jax.lax.scan(lambda total, examples: (jax.tree.map(jnp.add, total, f(examples)), None), zero, blocks)
    return total if whole == n else jax.tree.map(jnp.add, total, f(rest))


def cycle_of(config: Config, n_train: int | None) -> int:
    """Steps after which the minibatches of a train set come again; 1 where there are none. n_train None: unlimited data."""
    return 1 if n_train is None or config.batch_size is None else n_train // math.gcd(n_train, config.batch_size)


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

    def counted(values, examples: Examples):
        """values [N, Q], zero at the targets that the loss does not count."""
        return values if task.counted == len(task.parts) else jnp.where(examples.part < task.counted, values, 0)

    def losses(params, examples: Examples, keys=None):
        """Cross-entropy, and whether each answer is right [N, Q]; keys [N]: of dropout."""
        logits, _ = model.apply({"params": params}, examples.tokens, keys)
        loss = cross_entropy(logits, examples.targets, config.loss)
        return loss, is_correct(logits, examples.targets).astype(loss.dtype)

    def sums(params, examples: Examples, keys=None):
        """(summed loss, right answers) over the counted targets."""
        loss, right = losses(params, examples, keys)
        return counted(loss, examples).sum(), counted(right, examples).sum()

    def evaluate(params, examples: Examples) -> Scores:
        parts = jnp.arange(len(task.parts))

        def sums_of_parts(examples: Examples):
            loss, right = losses(params, examples)
            whole = (counted(right, examples).sum(axis=1) == task.n_counted).sum(dtype=loss.dtype)
            of_part = examples.part[..., None] == parts if task.parts else jnp.zeros((*loss.shape, 0), bool)
            by_part = [jnp.where(of_part, x[..., None], 0).sum((0, 1)) for x in (loss, right, jnp.ones_like(loss))]
            return counted(loss, examples).sum(), counted(right, examples).sum(), whole, *by_part

        loss, right, whole, part_loss, part_right, part_count = sum_over_blocks(sums_of_parts, examples, block)
        n = len(examples.tokens)
        return Scores(loss / (n * task.n_counted), right / (n * task.n_counted), whole / n, part_loss / part_count, part_right / part_count)

    def start(params, hyper: Hyper) -> TrainState:
        return TrainState(params, make_optimizer(config, hyper).init(params), jnp.int32(0))

    def init(hyper: Hyper) -> TrainState:
        key = jax.random.fold_in(jax.random.key(hyper.seed), INIT_STREAM)
        tokens = jnp.zeros((1, task.n_ctx), jnp.int32)
        drawn = model.init(key, tokens)["params"]
        return start(jax.tree.map(lambda w: hyper.init_scale * w, drawn), hyper)

    def examples_of(epoch, train: Examples | None, hyper: Hyper) -> Examples:
        """The examples of one step: fresh ones, the next minibatch of a cycle through the train set, or all of it."""
        if train is None:
            key = jax.random.fold_in(jax.random.key(hyper.data_seed), FRESH_STREAM)
            return task.sample(jax.random.fold_in(key, epoch), config.batch_size or task.batch_size)
        n = len(train.tokens)
        if config.batch_size is None or config.batch_size == n:
            return train
        # (epoch * batch_size) % n for each step of a cycle, in numpy: the product may be more than an int32.
        starts = np.arange(cycle_of(config, n)) * config.batch_size % n
        rows = (jnp.asarray(starts, jnp.int32)[epoch % len(starts)] + jnp.arange(config.batch_size)) % n
        return jax.tree.map(lambda x: x[rows], train)

    def step(state: TrainState, train: Examples | None, hyper: Hyper):
        examples, keys = examples_of(state.epoch, train, hyper), None
        if config.dropout:
            key = jax.random.fold_in(jax.random.key(hyper.seed), DROPOUT_STREAM)
            keys = jax.random.split(jax.random.fold_in(key, state.epoch), len(examples.tokens))

        def of_block(block):
            return jax.value_and_grad(sums, has_aux=True)(state.params, *block)

        total = sum_over_blocks(of_block, (examples, keys), block)
        (loss, accuracy), grads = jax.tree.map(lambda x: x / (len(examples.tokens) * task.n_counted), total)
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
    """One run's curves: train_loss and train_acc [epochs] at every epoch; the rest at `epoch_eval`, Scores of the test
    examples: test_loss, test_acc, test_answer_acc, and test_part_loss and test_part_acc [evaluations, parts]."""

    train_loss: np.ndarray
    train_acc: np.ndarray
    test_loss: np.ndarray
    test_acc: np.ndarray
    test_answer_acc: np.ndarray
    test_part_loss: np.ndarray
    test_part_acc: np.ndarray
    epoch_eval: np.ndarray


def train(
    config: Config = Config(),
    *,
    seed: int = 0,
    weight_decay: float = 1.0,
    lr: float = 1e-3,
    frac: float | None = None,
    n_train: int | None = None,
    init_scale: float = 1.0,
    epochs: int = 40_000,
    split_seed: int | None = None,
    eval_every: int | None = None,
    params: dict | None = None,
) -> tuple[TrainState, Curves]:
    """Train one run in memory and return its final state and its curves; `sweep` is for many, with files.

    frac: of the pairs of a modular task, None: 0.3; n_train: examples of another, None: unlimited data. params: start from these
    instead of drawing from the seed. The split is the seed's unless split_seed is given. Raises BadInput for the other kind of
    task's size, or a minibatch larger than the train set.
    """
    task = make_task(config)
    name, other = ("frac", n_train) if config.modular else ("n_train", frac)
    if other is not None:
        raise BadInput("n_train" if config.modular else "frac", other, f"{name}, with task {config.task}")
    size = (0.3 if frac is None else frac) if config.modular else n_train
    step_examples(config, task.n_train(size))  # raises for a minibatch that is too large
    every = eval_every or default_eval_every(epochs)
    trainer = make_train(config, every)
    hyper = make_hyper(config, seed, weight_decay, lr, split_seed, init_scale)
    train_set, test_set = task.split(size, seed, split_seed)
    advance, evaluate = jax.jit(trainer.advance, donate_argnums=0), jax.jit(trainer.evaluate)
    # Copied, because `advance` donates its state: the caller's arrays must outlive it.
    state = jax.jit(trainer.init)(hyper) if params is None else trainer.start(jax.tree.map(jnp.array, params), hyper)
    evals = schedule(epochs, every)
    rows = []
    for epoch, stop in zip(evals, [*evals[1:], epochs]):
        test = evaluate(state.params, test_set)
        state, loss, accuracy = advance(state, train_set, hyper, stop - epoch)
        rows.append((loss[: stop - epoch], accuracy[: stop - epoch], *test))
    loss, accuracy, *test = (list(map(np.asarray, column)) for column in zip(*rows))
    return state, Curves(np.concatenate(loss), np.concatenate(accuracy), *map(np.array, test), np.array(evals))
