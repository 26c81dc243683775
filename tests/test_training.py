import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrok.config import BadInput, Config, Run
from jaxgrok.nets.loss import cross_entropy
from jaxgrok.nets.model import make_model
from jaxgrok.tasks import make_config, make_task
from jaxgrok.training.run import make_program, sum_over_blocks, train
from tests.conftest import assert_equal_in_any_row
from tests.reference import plain

SMALL = Config(p=7, d_model=8, n_heads=2, dtype="float64")
TRAJECTORIES = ("small_add", "small_add_wd0", "gelu_subtract", "quad", "mainline_first_steps")


def author_run(shared, name):
    """A trajectory of the authors' classes, its config as ours, and its initial weights as it states them."""
    run = json.loads((shared / "reference" / "author_trajectories_float64.json").read_text())[name]
    c = run["config"]
    draw, weights = np.random.RandomState(1234), {}
    for key, shape in run["param_order"]:
        weights[key] = draw.standard_normal(shape) * (0.01 if key.split(".")[-1].startswith("b_") else 0.1)
    fields = {key: c[key] for key in ("task", "p", "d_model", "n_heads", "d_mlp")}
    config = Config(**fields, act=c["activation"].lower(), dtype="float64", loss="float64")
    return run, config, plain.from_authors(weights, c["n_heads"])


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_every_step_is_the_authors(shared, name):
    run, config, params = author_run(shared, name)
    c = run["config"]
    state, curves = train(
        config,
        params=params,
        split_seed=c["split_seed"],
        frac=c["frac_train"],
        weight_decay=c["weight_decay"],
        lr=c["lr"],
        epochs=len(run["train_loss"]),
        eval_every=1,
    )
    # Rounding of float64 grows along a trajectory: 1e-15 at the start, 1e-11 after 300 steps.
    np.testing.assert_allclose(curves.train_loss, run["train_loss"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(curves.test_loss, run["test_loss"], rtol=0, atol=1e-10)
    for path, weight in jax.tree.leaves_with_path(state.params):
        key = ".".join(part.key for part in path).replace("blocks_0", "blocks.0")
        assert (weight**2).sum() == pytest.approx(run["final_sum_sq"][key], rel=1e-8), key
        assert weight.sum() == pytest.approx(run["final_param_sum"][key], rel=1e-8, abs=1e-8), key


def test_the_first_step_has_rate_zero():
    _, curves = train(SMALL, epochs=12, lr=0.5, eval_every=1)
    assert curves.train_loss[0] == curves.train_loss[1] != curves.train_loss[2]


@functools.cache
def mean_loss(config):
    """The value and gradient of the mean loss: (params, examples) -> (loss, gradient)."""

    def loss(params, examples):
        logits, _ = make_model(config, make_task(config)).apply({"params": params}, examples.tokens)
        return cross_entropy(logits, examples.targets).mean()

    return jax.jit(jax.value_and_grad(loss))


ONE_HOT = {"arch": "mlp", "d_mlp": 8}
SLOPES = {"l2": lambda w: w, "l1": np.sign}  # of w^2 / 2 and |w|; biases start at 0, where sign is 0


@pytest.mark.parametrize(
    ("optimizer", "regulariser", "fields"),
    [
        ("adam", "weight_decay", {}),
        ("adam", "weight_decay", ONE_HOT),
        ("adam", "l2", ONE_HOT),
        ("adam", "l1", ONE_HOT),
        ("adam", "none", ONE_HOT),
        ("sgd", "weight_decay", ONE_HOT),
        ("sgd", "l2", ONE_HOT),
        ("sgd", "none", ONE_HOT),
    ],
)
def test_steps_against_the_optimiser_written_out(optimizer, regulariser, fields):
    base = dataclasses.replace(SMALL, **fields)
    config, wd, lr = dataclasses.replace(base, optimizer=optimizer, regulariser=regulariser), 0.7, 0.01
    program, hyper = make_program(config, 3), Run(config, 5, weight_decay=wd, lr=lr).hyper()
    data, _ = make_task(config).split(0.5, 5)
    state = jax.jit(program.init)(hyper)
    slope = SLOPES.get(regulariser, np.zeros_like)
    decay = wd if regulariser == "weight_decay" else 0

    params, losses = state.params, []
    m = v = jax.tree.map(jnp.zeros_like, params)
    for step in range(3):
        loss, g = mean_loss(base)(params, data)
        losses.append(loss)
        g = jax.tree.map(lambda g, p: g + wd * slope(p), g, params)
        rate, t = lr * min(step / 10, 1), step + 1
        if optimizer == "sgd":
            m = jax.tree.map(lambda m, g: 0.9 * m + g, m, g)
            towards = m
        else:
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.98 * v + 0.02 * g**2, v, g)
            towards = jax.tree.map(lambda m, v: m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.98**t)) + 1e-8), m, v)  # noqa: B023
        params = jax.tree.map(lambda p, u: p - rate * (u + decay * p), params, towards)  # noqa: B023
    ours, recorded, *_ = jax.jit(program.advance)(state, data, hyper, 3)
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(params)):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(recorded, losses, rtol=1e-12)  # without what the regulariser adds


def test_the_initial_scale_is_a_factor_of_every_weight():
    init = jax.jit(make_program(SMALL).init)
    once, thrice = (init(Run(SMALL, 4, init_scale=scale).hyper()).params for scale in (1.0, 3.0))
    drawn = jax.jit(make_model(SMALL, make_task(SMALL)).init)(
        jax.random.fold_in(jax.random.key(4), 0), jnp.zeros((1, 3), jnp.int32)
    )
    jax.tree.map(np.testing.assert_array_equal, once, drawn["params"])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(3 * np.asarray(a), b), once, thrice)


@pytest.mark.parametrize("loss", ["exact", "float64", "float32"])
def test_a_float32_run_stays_float32_under_x64(loss):
    state, curves = train(Config(p=7, d_model=8, n_heads=2, loss=loss), epochs=3, eval_every=1)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt_state)} == {np.dtype(np.float32), np.dtype(np.int32)}
    assert curves.train_loss.dtype == (np.float64 if loss == "float64" else np.float32)


def test_entry_e_is_the_loss_after_e_updates():
    state, curves = train(SMALL, epochs=25, eval_every=10)
    assert len(curves.train_loss) == 25
    assert int(state.epoch) == 25
    assert curves.epoch_eval.tolist() == [0, 1, 2, 4, 8, 10, 20]
    for epoch in (8, 20):
        early, _ = train(SMALL, epochs=epoch, eval_every=10)
        train_set, test_set = make_task(SMALL).split(0.3, 0)
        evaluate = jax.jit(make_program(SMALL).evaluate)
        assert curves.train_loss[epoch] == pytest.approx(float(evaluate(early.params, train_set)[0]), rel=1e-12)
        assert curves.train_acc[epoch] == pytest.approx(float(evaluate(early.params, train_set)[1]))
        at = curves.epoch_eval.tolist().index(epoch)
        assert curves.test_loss[at] == pytest.approx(float(evaluate(early.params, test_set)[0]), rel=1e-12)


@pytest.mark.parametrize(("loss", "factor"), [("float32", 200), ("float64", 400), ("exact", 1500)])
def test_the_zero_share_counts_losses_that_rounding_has_made_zero(loss, factor):
    """log_softmax is zero where the right logit leads by more than the dtype resolves; the exact loss, where softplus
    underflows. The factor of the weights is such that some losses are zero and others are not."""
    config = dataclasses.replace(SMALL, dtype="float32", loss=loss)
    params = jax.jit(make_program(SMALL).init)(Run(SMALL).hyper()).params
    params = jax.tree.map(lambda w: np.asarray(w, np.float32), params)
    params["unembed"]["W_U"] = params["unembed"]["W_U"] * np.float32(factor)
    _, curves = train(config, params=params, epochs=1, frac=0.7)
    examples, _ = make_task(config).split(0.7, 0)
    logits = np.array(make_model(config, make_task(config)).apply({"params": params}, examples.tokens)[0][:, 0])
    right = np.take_along_axis(logits, examples.targets, axis=1)[:, 0]
    np.put_along_axis(logits, examples.targets, -np.inf, axis=1)
    # In float64: what is left of the probability of the wrong classes.
    with np.errstate(over="ignore"):
        wrong = np.exp(logits.astype(np.float64) - right[:, None]).sum(axis=1)
    smallest = {"float32": 2.0**-24, "float64": 2.0**-53, "exact": 2.0**-149}[loss]
    expected = (wrong < smallest).mean()
    assert 0 < expected < 1
    assert curves.train_zero[0] == pytest.approx(expected, abs=1.5 / len(right))


def test_longer_is_a_continuation():
    _, short = train(SMALL, epochs=20, eval_every=10)
    _, long = train(SMALL, epochs=40, eval_every=10)
    np.testing.assert_array_equal(short.train_loss, long.train_loss[:20])


def stacked(items):
    return jax.tree.map(lambda *rows: np.stack(rows), *items)


@pytest.mark.parametrize("fields", [{"arch": "mlp", "task": "random", "p": 6}, {"act": "gelu"}])
def test_vmapped_is_single_and_a_permutation_permutes(fields):
    config = Config(**{**SMALL.to_dict(), **fields})
    program, task = make_program(config), make_task(config)
    runs = [(0, 1.0, 1e-3), (1, 0.1, 1e-3), (2, 0.0, 1e-2)]
    hypers = [Run(config, seed, weight_decay=wd, lr=lr).hyper() for seed, wd, lr in runs]
    sets = [task.split(0.5, seed)[0] for seed, _, _ in runs]
    advance = jax.jit(jax.vmap(program.advance, (0, 0, 0, None)))

    def batch(order):
        hyper = stacked([hypers[i] for i in order])
        return advance(jax.jit(jax.vmap(program.init))(hyper), stacked([sets[i] for i in order]), hyper, 10)

    state, losses, *_ = batch([0, 1, 2])
    init, single = jax.jit(program.init), jax.jit(program.advance)
    for i in range(3):
        alone, loss, *_ = single(init(hypers[i]), sets[i], hypers[i], 10)
        # The same float64 sums in another order.
        np.testing.assert_allclose(losses[i], loss, rtol=1e-12)
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params)):
            np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-12)
    _, permuted, *_ = batch([2, 0, 1])
    assert_equal_in_any_row(permuted, losses[np.array([2, 0, 1])])


def test_traced_numbers_and_interval_lengths_compile_nothing_new():
    program, task = make_program(SMALL), make_task(SMALL)
    init, advance = jax.jit(program.init), jax.jit(program.advance)
    train_set, _ = task.split(0.5, 0)
    for seed, wd, lr, steps in [(0, 1.0, 1e-3, 10), (1, 0.1, 1e-2, 3), (2, 0.0, 1.0, 0)]:
        hyper = Run(SMALL, seed, weight_decay=wd, lr=lr).hyper()
        advance(init(hyper), train_set, hyper, steps)
    assert init._cache_size() == advance._cache_size() == 1


@pytest.mark.parametrize("block", [5, 23])
def test_blocks_sum_to_the_whole(block):
    train_set, _ = make_task(SMALL).split(0.5, 0)
    assert len(train_set.tokens) == 24
    whole, blocked = make_program(SMALL), make_program(SMALL, block=block)
    hyper = Run(SMALL, lr=1e-2).hyper()
    results = [jax.jit(p.advance)(jax.jit(p.init)(hyper), train_set, hyper, 10) for p in (whole, blocked)]
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-11)


@pytest.mark.parametrize("block", [1, 4, 5, 23, 24, 25, None])
def test_every_example_is_in_one_block_and_none_is_larger_than_asked(block):
    train_set, _ = make_task(SMALL).split(0.5, 0)
    sizes = []

    def targets(examples):
        sizes.append(len(examples.tokens))
        return examples.targets.sum()

    assert int(sum_over_blocks(targets, train_set, block)) == train_set.targets.sum()
    assert max(sizes) <= (block or 24)


def test_given_parameters_survive_the_training_that_starts_from_them():
    params = jax.jit(make_program(SMALL).init)(Run(SMALL).hyper()).params
    train(SMALL, params=params, epochs=2, eval_every=1)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("config", "size", "said"),
    [
        (SMALL, {"n_train": 5}, "n_train: got 5; accepted: frac, with task add"),
        (make_config("addition2"), {"frac": 0.3}, "frac: got 0.3; accepted: n_train, with task addition2"),
        (make_config("addition2", batch_size=9), {"n_train": 8}, "batch_size: got 9; accepted: at most 8"),
        (dataclasses.replace(SMALL, batch_size=500), {}, "batch_size: got 500; accepted: at most"),
    ],
)
def test_sizes_that_do_not_fit_the_task_are_refused(config, size, said):
    with pytest.raises(BadInput, match=said):
        train(config, epochs=1, **size)


def test_float64_is_refused_without_x64():
    make_program.cache_clear()
    with jax.enable_x64(False), pytest.raises(BadInput, match="x64"):
        make_program(Config(p=7, d_model=8, loss="float64"))


def test_accuracy_counts_read_positions():
    program = make_program(SMALL)
    params = jax.jit(program.init)(Run(SMALL).hyper()).params
    train_set, _ = make_task(SMALL).split(0.9, 0)
    scores = jax.jit(program.evaluate)(params, train_set)
    logits, _ = plain.transformer(jax.tree.map(np.asarray, params), train_set.tokens)
    logits = logits[:, 2:3]
    assert float(scores.loss) == pytest.approx(plain.cross_entropy(logits, train_set.targets).mean(), rel=1e-12)
    assert (
        float(scores.accuracy)
        == float(scores.answer_accuracy)
        == pytest.approx((logits.argmax(axis=-1) == train_set.targets).mean())
    )
    assert scores.part_loss.shape == scores.part_accuracy.shape == (0,)
