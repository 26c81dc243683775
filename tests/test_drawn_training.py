"""Training on examples that a task draws: fresh ones every step, minibatches, dropout, and the scores by part."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrok.config import Run
from jaxgrok.nets.model import make_model, with_dropout
from jaxgrok.tasks import Examples, make_config, make_task
from jaxgrok.training.run import FRESH_STREAM, make_program, train
from tests.reference import plain

NETWORK = {"arch": "attn_only", "n_layers": 1, "d_model": 8, "n_heads": 2, "dtype": "float64", "batch_size": 6}
CONFIGS = {
    "addition": make_config("addition1", **NETWORK),
    "induction": make_config("induction", seq_len=9, repeat_len=3, n_repeats=2, n_tokens=11, **NETWORK),
    "skip_trigram": make_config("skip_trigram", seq_len=6, **NETWORK),
}
WITH_DROPOUT = dataclasses.replace(CONFIGS["skip_trigram"], arch="transformer", d_mlp=8, dropout=0.3, batch_size=None)
STEPS = 7
SEED, DATA_SEED = 3, 8


@functools.cache
def programs(config, block=None):
    """(init, advance, evaluate) of one run, compiled once for all tests."""
    program = make_program(config, STEPS, block)
    return jax.jit(program.init), jax.jit(program.advance), jax.jit(program.evaluate)


def start(config, lr=1e-2, seed=SEED, data_seed=DATA_SEED):
    """(state, hyper) at epoch 0. With lr 0 the weights stay as they are, and the curve shows which examples came."""
    hyper = Run(config, seed, weight_decay=0.5, lr=lr, split_seed=data_seed).hyper()
    return programs(config)[0](hyper), hyper


@functools.cache
def sampler(config):
    stream = jax.random.fold_in(jax.random.key(DATA_SEED), FRESH_STREAM)
    return jax.jit(lambda epoch: make_task(config).sample(jax.random.fold_in(stream, epoch), config.batch_size))


def plain_losses(config, params, examples):
    """(loss, right) [N, Q] by the network in plain numpy."""
    task = make_task(config)
    logits, _ = plain.transformer(jax.tree.map(np.asarray, params), np.asarray(examples.tokens), config.act)
    logits = logits[:, slice(*task.read)]
    targets = np.asarray(examples.targets)
    return plain.cross_entropy(logits, targets), logits.argmax(axis=-1) == targets


def mean_loss(config, params, examples):
    """The loss of a step: the mean over the targets that it counts."""
    return plain_losses(config, params, examples)[0][np.asarray(examples.part) < make_task(config).counted].mean()


def stacked(items):
    return jax.tree.map(lambda *rows: np.stack(rows), *items)


# --- which examples a step has ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_fresh_examples_follow_from_the_data_seed_and_the_step(name):
    config = CONFIGS[name]
    state, hyper = start(config, lr=0)
    after, losses, *_ = programs(config)[1](state, None, hyper, STEPS)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    fresh = [sampler(config)(epoch) for epoch in range(STEPS)]
    assert len({examples.tokens.tobytes() for examples in fresh}) == STEPS
    # float64 sums in another order
    np.testing.assert_allclose(losses, [mean_loss(config, state.params, examples) for examples in fresh], rtol=1e-11)


@pytest.mark.parametrize("name", CONFIGS)
def test_minibatches_go_through_the_train_examples_in_turn(name):
    config = CONFIGS[name]
    data, _ = make_task(config).split(10, 0)
    state, hyper = start(config, lr=0)
    _, losses, *_ = programs(config)[1](state, data, hyper, STEPS)
    turns = [[(epoch * 6 + i) % 10 for i in range(6)] for epoch in range(STEPS)]
    expected = [mean_loss(config, state.params, jax.tree.map(lambda x, rows=rows: x[rows], data)) for rows in turns]
    np.testing.assert_allclose(losses, expected, rtol=1e-11)
    assert losses[0] == losses[5]  # 30 examples later
    assert len(set(losses[:5].tolist())) == 5


def test_minibatches_of_many_examples_late_in_a_run():
    """Epoch times batch size is more than an int32 holds."""
    config, n, epoch = CONFIGS["skip_trigram"], 70_000, 69_999
    examples = jax.jit(make_task(config).sample, static_argnums=1)(jax.random.key(0), n)
    state, hyper = start(config, lr=0)
    _, losses, *_ = programs(dataclasses.replace(config, batch_size=40_000))[1](
        state._replace(epoch=jnp.int32(epoch)), examples, hyper, 1
    )
    rows = (epoch * 40_000 + np.arange(40_000)) % n
    assert losses[0] == pytest.approx(
        mean_loss(config, state.params, jax.tree.map(lambda x: x[rows], examples)), rel=1e-10
    )


def test_entry_e_is_on_the_examples_of_step_e_after_e_updates():
    config = CONFIGS["skip_trigram"]
    state, hyper = start(config)
    advance = programs(config)[1]
    _, losses, *_ = advance(state, None, hyper, STEPS)
    for epoch in range(STEPS):
        assert losses[epoch] == pytest.approx(mean_loss(config, state.params, sampler(config)(epoch)), rel=1e-10)
        state, *_ = advance(state, None, hyper, 1)
    assert int(state.epoch) == STEPS


def test_the_data_seed_alone_decides_what_comes():
    config = CONFIGS["skip_trigram"]
    state, _ = start(config)
    advance = programs(config)[1]
    curves = [advance(state, None, start(config, 0, *seeds)[1], STEPS)[1] for seeds in ((0, 8), (1, 8), (1, 9))]
    np.testing.assert_array_equal(curves[0], curves[1])
    assert not set(curves[0].tolist()) & set(curves[2].tolist())


def test_train_takes_the_data_of_the_split_seed():
    config = CONFIGS["skip_trigram"]
    _, curves = train(
        config, seed=SEED, weight_decay=0.5, lr=1e-2, epochs=STEPS, split_seed=DATA_SEED, eval_every=STEPS
    )
    state, hyper = start(config)
    _, losses, *_ = programs(config)[1](state, None, hyper, STEPS)
    np.testing.assert_allclose(curves.train_loss, losses, rtol=1e-11)  # compiled for other intervals
    _, test = make_task(config).split(None, DATA_SEED)
    assert curves.test_loss[0] == pytest.approx(mean_loss(config, state.params, test), rel=1e-11)
    assert curves.test_part_loss.shape == curves.test_part_acc.shape == (len(curves.epoch_eval), 10)
    assert Run(config, SEED).hyper().data_seed == SEED


@pytest.mark.parametrize(
    ("name", "n_train", "batch_size"),
    [*((name, *data) for name in CONFIGS for data in ((None, 6), (10, 6))), ("skip_trigram", 10, None)],
)
def test_vmapped_is_single(name, n_train, batch_size):
    config = dataclasses.replace(CONFIGS[name], batch_size=batch_size)
    starts = [
        start(CONFIGS[name], lr, seed, data_seed) for lr, seed, data_seed in ((1e-2, 0, 0), (1e-3, 1, 5), (0.1, 2, 5))
    ]
    sets = [make_task(config).split(n_train, seed)[0] for seed in range(3)]
    advance = programs(config)[1]
    states, hypers = (stacked(items) for items in zip(*starts))
    together = jax.jit(jax.vmap(make_program(config, STEPS).advance, (0, 0, 0, None)))(
        states, stacked(sets), hypers, STEPS
    )
    alone = stacked([advance(state, data, hyper, STEPS) for (state, hyper), data in zip(starts, sets)])
    # The same float64 sums in another order, grown over seven steps.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), together, alone)


@pytest.mark.parametrize(
    ("config", "n_train"), [(CONFIGS["induction"], None), (WITH_DROPOUT, 6)], ids=["fresh data", "dropout"]
)
def test_fresh_data_and_dropout_do_not_depend_on_blocks_or_interruptions(config, n_train):
    data, _ = make_task(config).split(n_train, 0)
    state, hyper = start(config)
    advance = programs(config)[1]
    whole = advance(state, data, hyper, STEPS)
    # Six examples in blocks of three.
    _, blocked, *_ = programs(config, 4)[1](state, data, hyper, STEPS)
    np.testing.assert_allclose(blocked, whole[1], rtol=1e-10)
    early, first, *_ = advance(state, data, hyper, 3)
    late, then, *_ = advance(jax.tree.map(np.asarray, early), data, hyper, STEPS - 3)
    np.testing.assert_array_equal(np.concatenate([first[:3], then[: STEPS - 3]]), whole[1])
    jax.tree.map(np.testing.assert_array_equal, late, whole[0])


# --- dropout ----------------------------------------------------------------------------------------------------------


def test_dropout_keeps_the_expectation_and_drops_its_share():
    keys = jax.random.split(jax.random.key(0), 200)
    x = jnp.full((200, 5, 20), 3.0)
    dropped = np.asarray(with_dropout(x, 0.3, keys, 0))
    assert set(np.unique(dropped)) == {0, 3 / 0.7}
    # 20,000 entries: five standard errors of the share
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=5 * np.sqrt(0.3 * 0.7 / 20_000))
    # Another mask for every example and every place, the same for the same.
    assert len({example.tobytes() for example in dropped}) == 200
    assert (dropped != with_dropout(x, 0.3, keys, 1)).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(with_dropout(x[7:9], 0.3, keys[7:9], 0), dropped[7:9])


def test_each_sublayer_drops_from_its_own_output_and_not_alike():
    config, params = WITH_DROPOUT, start(WITH_DROPOUT)[0].params
    _, test = make_task(config).split(None, 0)
    tokens, keys = test.tokens[:50], jax.random.split(jax.random.key(0), 50)
    logits, activations = jax.jit(make_model(config, make_task(config)).apply)({"params": params}, tokens, keys)
    seen = {name.removeprefix("blocks.0."): np.asarray(x) for name, x in activations.items()}
    masks = []
    for before, sublayer, after in (("resid_pre", "attn_out", "resid_mid"), ("resid_mid", "mlp_out", "resid_post")):
        added = seen[f"hook_{after}"] - seen[f"hook_{before}"]
        masks.append(added == 0)
        # What was kept is scaled up; differences of numbers of order 1.
        np.testing.assert_allclose(added, np.where(masks[-1], 0, seen[f"hook_{sublayer}"] / 0.7), atol=1e-14)
    assert (masks[0] != masks[1]).any()
    np.testing.assert_allclose(logits, seen["hook_resid_post"] @ params["unembed"]["W_U"], rtol=1e-11, atol=1e-13)


def test_a_float32_run_drops_the_same_under_x64():
    x = np.ones((9, 40), np.float32)
    masks = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            masks.append(np.asarray(with_dropout(jnp.asarray(x), 0.3, jax.random.split(jax.random.key(0), 9), 0)))
    assert masks[1].dtype == np.float32
    np.testing.assert_array_equal(*masks)


def test_each_step_drops_something_else():
    data, _ = make_task(WITH_DROPOUT).split(6, 0)
    state, hyper = start(WITH_DROPOUT, lr=0)
    advance = programs(WITH_DROPOUT)[1]
    losses = advance(state, data, hyper, STEPS)[1].tolist()
    assert len(set(losses)) == STEPS
    assert not set(losses) & set(advance(state, data, start(WITH_DROPOUT, 0, SEED + 1)[1], STEPS)[1].tolist())
    assert mean_loss(WITH_DROPOUT, state.params, data) not in losses


def test_nothing_is_dropped_in_an_evaluation_or_at_rate_zero():
    _, test = make_task(WITH_DROPOUT).split(None, 0)
    without = dataclasses.replace(WITH_DROPOUT, dropout=0.0)
    params = start(WITH_DROPOUT)[0].params
    scores = [programs(config)[2](params, test) for config in (WITH_DROPOUT, without)]
    # Without dropout products of weights take the place of weights, which rounds differently.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), *scores)
    assert scores[0].loss == pytest.approx(mean_loss(without, params, test), rel=1e-11)
    x, keys = jnp.ones((4, 5)), jax.random.split(jax.random.key(0), 4)
    np.testing.assert_array_equal(with_dropout(x, 0.0, keys, 0), x)
    np.testing.assert_array_equal(with_dropout(x, 0.3, None, 0), x)


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "block"), [*((name, None) for name in CONFIGS), ("induction", 9)])
def test_scores_against_numpy(name, block, rng):
    config = CONFIGS[name]
    task, params = make_task(config), start(config)[0].params
    test = jax.tree.map(lambda x: x[:25], task.split(None, 0)[1])
    # What the network says, in most places: some answers are right as a whole.
    logits, _ = plain.transformer(jax.tree.map(np.asarray, params), test.tokens)
    said = logits[:, slice(*task.read)].argmax(axis=-1)
    test = test._replace(targets=np.where(rng.random(said.shape) < 0.7, said, test.targets).astype(np.int32))
    if name == "skip_trigram":
        test = jax.tree.map(lambda x: x[test.part[:, 0] != 4], test)  # no example of one part
    loss, right = plain_losses(config, params, test)
    answers, by_part = [], {i: [] for i in range(len(task.parts))}
    for n, parts in enumerate(test.part.tolist()):
        answers.append(all(right[n, q] for q, i in enumerate(parts) if i < task.counted))
        for q, i in enumerate(parts):
            by_part[i].append((loss[n, q], right[n, q]))
    assert 0 < sum(answers) < len(answers)
    counted = [pair for i in range(task.counted) for pair in by_part[i]]
    assert len(counted) == len(test.tokens) * task.n_counted
    means = np.array([np.mean(pairs, axis=0) if pairs else (np.nan, np.nan) for pairs in by_part.values()])

    scores = programs(config, block)[2](params, test)
    np.testing.assert_allclose([scores.loss, scores.accuracy], np.mean(counted, axis=0), rtol=1e-11)
    assert scores.answer_accuracy == pytest.approx(np.mean(answers))
    np.testing.assert_allclose(np.stack([scores.part_loss, scores.part_accuracy], axis=1), means, rtol=1e-11)
    assert np.isnan(means).any() == (name == "skip_trigram")
    # The parts, weighted by their targets, are the whole.
    weights = np.array([len(by_part[i]) for i in range(task.counted)])
    whole = np.nansum(weights * np.asarray(scores.part_loss[: task.counted])) / weights.sum()
    assert whole == pytest.approx(float(scores.loss))


def test_what_the_loss_does_not_count_changes_no_step():
    config = CONFIGS["induction"]
    data, _ = make_task(config).split(10, 0)
    outside = data.part == make_task(config).counted
    assert 0 < outside.sum() < outside.size
    state, hyper = start(config)
    advance = programs(config)[1]
    scrambled = Examples(data.tokens, np.where(outside, (data.targets + 3) % 11, data.targets), data.part)
    jax.tree.map(
        np.testing.assert_array_equal, advance(state, data, hyper, STEPS), advance(state, scrambled, hyper, STEPS)
    )
    scrambled = scrambled._replace(targets=np.where(outside, data.targets, (data.targets + 3) % 11))
    assert advance(state, scrambled, hyper, 1)[1][0] != advance(state, data, hyper, 1)[1][0]
