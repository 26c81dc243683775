"""One training run as pure functions: AdamW as published, on all train examples, on minibatches, or on fresh data.

Everything here is written for one run; `training/batch.py` maps it over many. A run's numbers (`Hyper`) are traced, so
other seeds, weight decays and learning rates compile nothing new. The state is carried, the curves are returned.

Epochs count updates. Entry e of a curve is the loss after e updates, on the examples of update e; so N epochs give the
entries 0..N-1 and the weights after N updates. The examples of a step follow from the run's seed and the step alone.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxgrok.config import BadInput, Config, Hyper, Run
from jaxgrok.nets.loss import cross_entropy, is_correct
from jaxgrok.nets.model import Model, Params, make_model
from jaxgrok.nets.precision import at_precision
from jaxgrok.store.schedule import default_eval_every, schedule
from jaxgrok.tasks import DrawnTask, Examples, Task, make_task, step_examples
from jaxgrok.training.gradients import (
    grokfast,
    grokfast_of_window,
    muon,
    orthograd,
    schedule_free,
    where_gradients_are,
    within_norm,
)

# The fold_in constants of a seed's PRNG streams. A new consumer takes 5: examples that are drawn once have 2
# (tasks/drawn.py), and the sequences on which heads are measured have 4.
INIT_STREAM, FRESH_STREAM, DROPOUT_STREAM = 0, 1, 3
DEFAULT_FRAC = 0.3  # of all examples; of the pairs in the paper's main experiment


class Scores(NamedTuple):
    """How a network does on examples.

    loss, accuracy: means over the targets that the loss counts.
    answer_accuracy: the share of examples whose counted targets are all right.
    part_loss, part_accuracy: means over the targets of each part; NaN for a part without a target.
    """

    loss: Float[Array, "*rows"]
    accuracy: Float[Array, "*rows"]
    answer_accuracy: Float[Array, "*rows"]
    part_loss: Float[Array, "*rows parts"]
    part_accuracy: Float[Array, "*rows parts"]


class Recorded(NamedTuple):
    """What is recorded of an interval of training, or of several [K].

    train_loss, train_acc, train_zero: of each step (`Program.advance`); NaN past the last. scores: of the test examples
    before the interval; NaN if they were not evaluated.
    """

    train_loss: Float[Array, "*rows max_steps"]
    train_acc: Float[Array, "*rows max_steps"]
    train_zero: Float[Array, "*rows max_steps"]
    scores: Scores


class TrainState(NamedTuple):
    """What a run carries from epoch to epoch: its parameters, the optimiser's state, and the updates done (int32)."""

    params: Params
    opt_state: Any
    epoch: Int[Array, "*rows"]


def make_optimizer(config: Config, hyper: Hyper) -> optax.GradientTransformation:
    """The optimiser and regulariser of a config. The default is AdamW with weight decay on every parameter.

    The learning rate is lr * min(step / warmup_steps, 1), so the first step has rate 0. The regulariser l2 adds
    weight_decay / 2 |w|^2 to the loss and l1 adds weight_decay |w|_1; recorded losses leave these terms out.
    """

    # Built inside the mapped function, from traced numbers. The schedule casts the step itself: dividing two integers
    # would give float32 even under x64.
    def rate(step):
        if not config.warmup_steps:
            return hyper.lr
        return hyper.lr * jnp.minimum(step.astype(hyper.lr.dtype) / config.warmup_steps, 1)

    def add_l1(grads, params):
        return jax.tree.map(lambda g, w: g + hyper.weight_decay * jnp.sign(w), grads, params)

    decayed = optax.add_decayed_weights(hyper.weight_decay)
    in_loss = {"l2": [decayed], "l1": [optax.stateless(add_l1)]}.get(config.regulariser, [])
    filters = []
    if config.grokfast_window is not None:
        filters = [grokfast_of_window(config.grokfast_window, config.grokfast)]
    elif config.grokfast:
        filters = [grokfast(config.grokfast_alpha, config.grokfast)]
    filters += [orthograd()] if config.orthograd == "yes" else []
    direction = {
        "adam": optax.scale_by_adam(config.b1, config.b2, config.eps),
        "sgd": optax.trace(config.b1),
        "lion": optax.scale_by_lion(config.b1, config.b2),
        "muon": muon(optax.scale_by_adam(config.b1, config.b2, config.eps)),
        # Adam without a first moment
        "schedule_free": optax.scale_by_rms(config.b2, config.eps, eps_in_sqrt=False, bias_correction=True),
    }[config.optimizer]
    decoupled = [decayed] if config.regulariser == "weight_decay" else []
    step_size = optax.scale_by_learning_rate(rate if config.warmup_steps else hyper.lr)
    chain = optax.chain(*in_loss, *filters, direction, *decoupled, step_size)
    return schedule_free(chain, rate, config.b1) if config.optimizer == "schedule_free" else chain


def sum_over_blocks(f: Callable[[Any], Any], examples: Any, block: int | None) -> Any:
    """f(examples), computed in blocks of at most `block` examples (None: all at once) and summed.

    examples: any pytree [N, ...]. f: a function of it that returns a pytree of sums.

    On a CPU the activations of a block stay in cache, which makes an epoch at p = 113 1.2 times as fast.
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


def _blank(shapes: Any, *axes: int) -> Any:
    """A pytree of NaN of these shapes, with axes in front."""
    return jax.tree.map(lambda x: jnp.full((*axes, *x.shape), jnp.nan, x.dtype), shapes)


def cycle_of(config: Config, n_train: int | None) -> int:
    """The number of steps after which the minibatches of a train set repeat; 1 if there are no minibatches.

    n_train None means unlimited data.
    """
    if n_train is None or config.batch_size is None:
        return 1
    return n_train // math.gcd(n_train, config.batch_size)


@dataclass(frozen=True, eq=False)
class Program:
    """The computation of one run of a config. Its methods are pure, and not compiled yet.

    max_steps: the most steps that one call of `advance` takes.
    block: how many examples pass through the network at once (`sum_over_blocks`); None means all of them. It changes
    results only by rounding.
    """

    config: Config
    task: Task
    model: Model
    max_steps: int
    block: int | None

    def init(self, hyper: Hyper) -> TrainState:
        """The state at epoch 0, with parameters drawn from the seed."""
        key = jax.random.fold_in(jax.random.key(hyper.seed), INIT_STREAM)
        tokens = jnp.zeros((1, self.task.n_ctx), jnp.int32)
        drawn = self.model.init(key, tokens)["params"]
        return self.start(jax.tree.map(lambda w: hyper.init_scale * w, drawn), hyper)

    def start(self, params: Params, hyper: Hyper) -> TrainState:
        """The state at epoch 0, with given parameters."""
        if self.config.max_norm is not None:
            params = within_norm(params, self.config.max_norm)
        return TrainState(params, make_optimizer(self.config, hyper).init(params), jnp.int32(0))

    def advance(
        self, state: TrainState, train: Examples | None, hyper: Hyper, n_steps: Int[Array, ""] | int
    ) -> tuple[TrainState, Float[Array, "max_steps"], Float[Array, "max_steps"], Float[Array, "max_steps"]]:
        """(the state after n_steps more steps; the loss, the accuracy and the zero share of each step). Entries past
        n_steps are NaN.

        The zero share is that of the targets whose loss has rounded to exactly zero, so that they have no gradient any
        more (Prieto et al. 2025: softmax collapse).

        train: the train examples; None means fresh ones every step.
        """
        config = self.config
        loss_dtype = config.loss if config.loss in ("float32", "float64") else config.dtype

        @at_precision(config.matmul_precision)
        def body(i, carry):
            state, *curves = carry
            state, *values = self._step(state, train, hyper)
            return (state, *(curve.at[i].set(value) for curve, value in zip(curves, values, strict=True)))

        blank = jnp.full((self.max_steps,), jnp.nan, loss_dtype)
        return jax.lax.fori_loop(0, n_steps, body, (state, blank, blank, blank))

    def advance_through(
        self,
        state: TrainState,
        train: Examples | None,
        test: Examples,
        hyper: Hyper,
        n_steps: Int[Array, "K"],
        is_evaluated: Bool[Array, "K"],
    ) -> tuple[TrainState, Recorded]:
        """(the state after several intervals of training, one after the other; what is recorded of each).

        n_steps: of each interval; 0 for those at the end that are left out, of which nothing is recorded but NaN.
        is_evaluated: whether the test examples are evaluated before the interval.
        """

        def interval(state, k):
            def evaluated(params):
                return self.evaluate(params, test)

            def left_out(params):
                return _blank(jax.eval_shape(evaluated, params))

            scores = jax.lax.cond(is_evaluated[k], evaluated, left_out, state.params)
            state, loss, accuracy, zero = self.advance(state, train, hyper, n_steps[k])
            return state, Recorded(loss, accuracy, zero, scores)

        def body(k, carry):
            state, recorded = carry
            state, here = interval(state, k)
            return state, jax.tree.map(lambda of_all, of_one: of_all.at[k].set(of_one), recorded, here)

        _, one = jax.eval_shape(interval, state, 0)
        count = (n_steps > 0).sum(dtype=jnp.int32)
        return jax.lax.fori_loop(0, count, body, (state, _blank(one, len(n_steps))))

    def evaluate(self, params: Params, examples: Examples) -> Scores:
        """How a network does on examples."""
        n = len(examples.tokens)

        @at_precision(self.config.matmul_precision)
        def sums():
            of_block = functools.partial(self._sums, self.model.prepare(params, n))
            return sum_over_blocks(of_block, examples, self.block)

        loss, right, answers, part_loss, part_right, part_count = sums()
        targets = n * self.task.n_counted
        return Scores(loss / targets, right / targets, answers / n, part_loss / part_count, part_right / part_count)

    def _sums(self, prepared: Any, examples: Examples) -> tuple[Array, ...]:
        """Sums over examples: of the losses, of the right answers and of the examples with all answers right; then of
        losses, right answers and targets for each part."""
        mode = "exact" if self.config.loss == "stablemax" else self.config.loss  # all evaluations are cross-entropies
        loss, right = self._losses(prepared, examples, None, mode)
        counted_right = self._counted(right, examples)
        answers = (counted_right.sum(axis=1) == self.task.n_counted).sum(dtype=loss.dtype)
        # [N, Q, parts]
        part = jnp.zeros(loss.shape, jnp.int32) if examples.part is None else examples.part
        of_part = jax.nn.one_hot(part, len(self.task.parts), dtype=bool)
        by_part = [jnp.where(of_part, x[..., None], 0).sum((0, 1)) for x in (loss, right, jnp.ones_like(loss))]
        return self._counted(loss, examples).sum(), counted_right.sum(), answers, *by_part

    def _losses(
        self, prepared: Any, examples: Examples, keys: Any, mode: str, smoothing: float = 0
    ) -> tuple[Float[Array, "N Q"], Float[Array, "N Q"]]:
        """The loss of each target, and whether its answer is right. keys: of dropout [N]; None: no dropout. mode,
        smoothing: as `cross_entropy` takes them."""
        logits, _ = self.model.forward(prepared, examples.tokens, keys)
        loss = cross_entropy(logits, examples.targets, mode, smoothing)
        return loss, is_correct(logits, examples.targets).astype(loss.dtype)

    def _counted(self, values: Float[Array, "N Q"], examples: Examples) -> Float[Array, "N Q"]:
        """The values, with zeros at the targets that the loss does not count."""
        if examples.part is None or self.task.counted == len(self.task.parts):
            return values
        return jnp.where(examples.part < self.task.counted, values, 0)

    def _examples_of(self, epoch: Int[Array, ""], train: Examples | None, hyper: Hyper) -> Examples:
        """The examples of one step: fresh ones, the next minibatch of a cycle through the train set, or all of it."""
        config, task = self.config, self.task
        if train is None:
            assert isinstance(task, DrawnTask)  # only these have unlimited data
            key = jax.random.fold_in(jax.random.key(hyper.data_seed), FRESH_STREAM)
            return task.sample(jax.random.fold_in(key, epoch), step_examples(config, None))
        n = len(train.tokens)
        if config.batch_size is None or config.batch_size == n:
            return train
        # (epoch * batch_size) % n for each step of a cycle, in numpy: the product may not fit into an int32.
        starts = np.arange(cycle_of(config, n)) * config.batch_size % n
        start = jnp.asarray(starts, jnp.int32)[epoch % len(starts)]
        rows = (start + jnp.arange(config.batch_size, dtype=jnp.int32)) % n
        return jax.tree.map(lambda x: x[rows], train)

    def _dropout_keys(self, epoch: Int[Array, ""], hyper: Hyper, n: int) -> Any:
        """One PRNG key per example [N]; None for a config without dropout."""
        if not self.config.dropout:
            return None
        key = jax.random.fold_in(jax.random.key(hyper.seed), DROPOUT_STREAM)
        return jax.random.split(jax.random.fold_in(key, epoch), n)

    def _step(self, state: TrainState, train: Examples | None, hyper: Hyper) -> tuple[TrainState, Any, Any, Any]:
        """One update: (the state after it; its loss, accuracy and zero share)."""
        examples = self._examples_of(state.epoch, train, hyper)
        n = len(examples.tokens)
        keys = self._dropout_keys(state.epoch, hyper, n)
        at: Any = state.params
        if self.config.optimizer == "schedule_free":
            at = where_gradients_are(at, state.opt_state, self.config.b1)
        prepared, pull_back = jax.vjp(lambda params: self.model.prepare(params, n), at)

        def sums(prepared, examples, keys):
            loss, right = self._losses(prepared, examples, keys, self.config.loss, self.config.label_smoothing)
            is_zero = jnp.where(jnp.isnan(loss), loss, (loss == 0).astype(loss.dtype))
            counted, *others = (self._counted(x, examples).sum() for x in (loss, right, is_zero))
            return counted, others

        def with_gradient(block):
            return jax.value_and_grad(sums, has_aux=True)(prepared, *block)

        total = sum_over_blocks(with_gradient, (examples, keys), self.block)
        (loss, (accuracy, zero)), slopes = jax.tree.map(lambda x: x / (n * self.task.n_counted), total)
        (grads,) = pull_back(slopes)
        # Optax's Adam computes float ** integer, which strict dtype promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = make_optimizer(self.config, hyper).update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        if self.config.max_norm is not None:
            params = within_norm(params, self.config.max_norm)
        return TrainState(params, opt_state, state.epoch + 1), loss, accuracy, zero


def x64_is_on() -> bool:
    """Whether JAX computes in float64 where it is asked to."""
    return bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def make_program(config: Config, max_steps: int = 10, block: int | None = None) -> Program:
    """The `Program` of a config.

    Raises BadInput if the config needs float64 and x64 is off in JAX.
    """
    if config.needs_x64 and not x64_is_on():
        field = "dtype" if config.dtype == "float64" else "loss"
        raise BadInput(field, "float64", 'float64 only after jax.config.update("jax_enable_x64", True)')
    task = make_task(config)
    return Program(config, task, make_model(config, task), max_steps, block)


class Curves(NamedTuple):
    """The curves of one run that was trained in memory.

    train_loss, train_acc, train_zero: at every epoch (`Program.advance`). epoch_eval: the epochs of the evaluations.
    The others are the `Scores` of the test examples at these.
    """

    train_loss: Float[np.ndarray, "T"]
    train_acc: Float[np.ndarray, "T"]
    train_zero: Float[np.ndarray, "T"]
    test_loss: Float[np.ndarray, "E"]
    test_acc: Float[np.ndarray, "E"]
    test_answer_acc: Float[np.ndarray, "E"]
    test_part_loss: Float[np.ndarray, "E parts"]
    test_part_acc: Float[np.ndarray, "E parts"]
    epoch_eval: Int[np.ndarray, "E"]


def check_precision(config: Config, platform: str) -> None:
    """Raises BadInput for a precision of products that devices of this platform do not have."""
    if config.matmul_precision == "tf32_x3" and platform in ("cpu", "tpu"):
        raise BadInput("matmul_precision", "tf32_x3", f"default high highest on a {platform.upper()}")


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
    params: Params | None = None,
) -> tuple[TrainState, Curves]:
    """Train one run in memory; returns its final state and its curves. `sweep` trains many, and keeps files.

    frac: the share of all examples to train on, for a task that lists them, as modular ones do; None means 0.3.
    n_train: the number of train examples, for any other task; None means unlimited data.
    split_seed: the seed of the split; None means the run's own.
    eval_every: epochs between evaluations; None means 10, or 1 % of a short run.
    params: parameters to start from; None means that they are drawn from the seed.

    Raises BadInput for a size of the other kind of task, for a minibatch larger than the train set, or for a precision
    that the device does not have.
    """
    run = _run_of(config, frac, n_train, seed, weight_decay, lr, init_scale, split_seed)
    every = default_eval_every(epochs) if eval_every is None else eval_every
    if every < 1:
        raise BadInput("eval_every", eval_every, "a whole number from 1")
    check_precision(config, jax.default_backend())
    program, hyper = make_program(config, every), run.hyper()
    train_set, test_set = program.task.split(run.size, seed, split_seed)
    advance, evaluate = jax.jit(program.advance, donate_argnums=0), jax.jit(program.evaluate)
    # Given parameters are copied, because `advance` donates its state: the caller's arrays must outlive it.
    given = jax.tree.map(jnp.array, params)
    state = jax.jit(program.init)(hyper) if params is None else program.start(given, hyper)
    evals = schedule(epochs, every)
    rows = []
    for epoch, stop in zip(evals, [*evals[1:], epochs]):
        test = evaluate(state.params, test_set)
        state, *of_train = advance(state, train_set, hyper, stop - epoch)
        rows.append((*(x[: stop - epoch] for x in of_train), *test))
    loss, accuracy, zero, *scores = (list(map(np.asarray, column)) for column in zip(*rows))
    curves: list[Any] = [*map(np.concatenate, (loss, accuracy, zero)), *map(np.array, scores)]
    return state, Curves(*curves, epoch_eval=np.array(evals))


def _run_of(config: Config, frac: float | None, n_train: int | None, seed: int, *numbers: Any) -> Run:
    """The run of these numbers. Raises BadInput if its size does not fit its task."""
    task = make_task(config)
    wrong, value, right = ("n_train", n_train, "frac") if config.listed else ("frac", frac, "n_train")
    if value is not None:
        raise BadInput(wrong, value, f"{right}, with task {config.task}")
    if config.listed:
        frac = DEFAULT_FRAC if frac is None else frac
        n_train = task.n_train(frac)
    step_examples(config, task.n_train(frac if config.listed else n_train))  # raises for a minibatch that is too large
    return Run(config, seed, frac, n_train, *numbers)
