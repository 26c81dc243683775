"""The attention of heads: a circuit planted by hand, brute force over positions, and their tables and figures."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from jaxgrok import figures
from jaxgrok.config import BadInput, Config, Run
from jaxgrok.measures import heads
from jaxgrok.nets.model import make_model
from jaxgrok.store.curves import RunCurves
from jaxgrok.store.events import Outcome, Timing
from jaxgrok.store.results import RunRecord, Status
from jaxgrok.tables import heads as head_tables
from jaxgrok.tasks import induction_task
from jaxgrok.training.run import make_program
from tests.reference import plain
from tests.test_figures import collisions, words

SHAPES: dict[str, Any] = {
    **{"task": "induction", "arch": "attn_only", "dtype": "float64"},
    **{"seq_len": 16, "repeat_len": 4, "n_repeats": 3, "n_tokens": 20},
}
SMALL = Config(**SHAPES, n_layers=2, n_heads=2, d_model=8)


def drawn(config, seed=0):
    """Parameters far from uniform attention."""
    task, rng = induction_task(config), np.random.default_rng(seed)
    tokens = np.zeros((1, task.n_ctx), np.int32)
    shapes = jax.eval_shape(make_model(config, task).init, jax.random.key(0), tokens)["params"]
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def planted():
    """(config, params, tokens, copies) of an induction circuit.

    Head 1 of layer 0 attends to the token before, and writes it where head 0 of layer 1 looks for the token that it
    reads. The other heads attend to everything equally. No token repeats by chance.
    """
    S, V = SHAPES["seq_len"], SHAPES["n_tokens"]
    config = Config(**SHAPES, n_layers=2, n_heads=2, d_model=S + 3 * V)
    place, (token, before, answer) = np.arange(S), S + np.arange(3 * V).reshape(3, V)  # directions in the stream
    params = jax.tree.map(np.zeros_like, drawn(config))
    params["embed"]["W_E"][np.arange(V), token] = 1
    params["pos_embed"]["W_pos"][np.arange(S), place] = 1
    first, second = (params[f"blocks_{layer}"]["attn"] for layer in (0, 1))
    first["W_Q"][1, place[1:], place[:-1]] = 1000
    first["W_K"][1, place, place] = 1
    first["W_V"][1, token, np.arange(V)] = first["W_O"][1, np.arange(V), before] = 1
    second["W_Q"][0, token, np.arange(V)] = 1000
    second["W_K"][0, before, np.arange(V)] = 1
    second["W_V"][0, token, np.arange(V)] = second["W_O"][0, np.arange(V), answer] = 1
    params["unembed"]["W_U"][answer, np.arange(V)] = 50
    copies = np.array([[1, 7, 12]])  # 15 positions after START: three blocks of five
    tokens = np.array([[0, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 7, 1, 2, 3, 4]])
    return config, params, tokens, copies


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def test_a_planted_circuit_is_found():
    config, params, tokens, copies = planted()
    m = as_numpy(heads.scores(config, params, tokens, copies))
    np.testing.assert_allclose(m["previous_token"][0, 1], 1)
    np.testing.assert_allclose(m["previous_token_by_block"][0, 1], 1)
    # The second copy attends to the first, the third equally to the first and the second.
    np.testing.assert_allclose(m["induction"][1, 0], 0.75)
    np.testing.assert_allclose(m["induction_any_copy"][1, 0], 1)
    np.testing.assert_allclose(m["induction_by_copy"][1, 0], [0.75, 0.5])
    # Heads that attend to everything have the scores of chance.
    for name in heads.SCORES:
        for layer, head in ((0, 0), (1, 1)):
            np.testing.assert_allclose(m[name][layer, head], m["chance"][name][layer])
    assert m["loss"] < 1e-6
    # The network guesses without either head of the circuit. Without the first, the second has nothing to look for.
    assert m["loss_without"][0, 1] > 2
    assert m["loss_without"][1, 0] == pytest.approx(np.log(20))
    np.testing.assert_allclose([m["loss_without"][0, 0], m["loss_without"][1, 1]], m["loss"])
    assert m["induction_without"][0, 1] == pytest.approx(m["chance"]["induction_any_copy"][0])
    assert m["induction_without"][0, 0] == m["induction_without"][1, 0] == pytest.approx(1)
    found = heads.kinds(m)
    assert heads.best_head(found["previous_token"].share) == (0, 1)
    assert heads.best_head(found["induction"].share) == (1, 0)
    for kind in head_tables.KINDS:
        assert (found[kind].share > heads.THRESHOLD).sum() == 1
        assert found[kind].share.max() == pytest.approx(1)
    assert found["induction"].place[1, 0] == 0


def brute_force(config, patterns, tokens, copies) -> dict:
    """The scores by loops, from patterns [N, H, S, S] of every position in every layer."""
    task = induction_task(config)
    N, H, S, _ = patterns[0].shape
    by_place = {"previous_token_by_block": (task.n_repeats,), "induction_by_copy": (task.n_repeats - 1,)}
    out = {name: np.full((config.n_layers, H, *by_place.get(name, ())), np.nan) for name in heads.SCORES}
    for layer, pattern in enumerate(patterns):
        computed = [t for t in range(S) if layer < config.n_layers - 1 or task.read[0] <= t < task.read[1]]
        for h in range(H):
            seen = {name: [] for name in out}
            by_block, by_copy = [[] for _ in range(task.n_repeats)], [[] for _ in range(task.n_repeats - 1)]
            for n in range(N):
                for t in computed:
                    if t:
                        seen["previous_token"].append(pattern[n, h, t, t - 1])
                        seen["current_token"].append(pattern[n, h, t, t])
                        by_block[min((t - 1) // task.block, task.n_repeats - 1)].append(pattern[n, h, t, t - 1])
                for c in range(1, task.n_repeats):
                    for k in range(1, task.repeat_len):
                        reads = copies[n][c] + k - 1
                        assert tokens[n][reads] == tokens[n][copies[n][0] + k - 1]
                        next_ones = [pattern[n, h, reads, copies[n][b] + k] for b in range(c)]
                        seen["induction"].append(next_ones[-1])
                        seen["induction_any_copy"].append(sum(next_ones))
                        seen["same_token"].append(sum(pattern[n, h, reads, copies[n][b] + k - 1] for b in range(c)))
                        for b, x in enumerate(next_ones):
                            by_copy[b].append(x)
            for name in seen:
                if "by" not in name:
                    out[name][layer, h] = np.mean(seen[name])
            out["previous_token_by_block"][layer, h] = [np.mean(x) if x else np.nan for x in by_block]
            out["induction_by_copy"][layer, h] = [np.mean(x) for x in by_copy]
    return out


NETWORKS = {
    "one layer": {"n_layers": 1},
    "two": {"n_layers": 2, "residual_factor": 2.0},
    "three, MLPs, two copies, a remainder, a longer context": {
        **{"n_layers": 3, "arch": "transformer", "d_mlp": 6, "n_repeats": 2, "seq_len": 18, "n_ctx": 20},
    },
}


@pytest.mark.parametrize("fields", NETWORKS.values(), ids=NETWORKS)
def test_scores_are_those_of_loops_over_the_plain_forward(fields):
    config = dataclasses.replace(SMALL, **fields)
    params, (tokens, copies) = drawn(config), heads.sequences(config, 5)
    m = as_numpy(heads.scores(config, params, tokens, copies))
    _, seen = plain.transformer(params, tokens, config.act, config.residual_factor)
    patterns = [seen[f"blocks.{layer}.attn.hook_pattern"] for layer in range(config.n_layers)]
    S = tokens.shape[1]
    uniform = [np.broadcast_to(np.tri(S) / np.arange(1, S + 1)[:, None], pattern.shape) for pattern in patterns]
    expected, chance = (brute_force(config, x, tokens, copies) for x in (patterns, uniform))
    assert set(expected) == set(heads.SCORES)
    for name, x in expected.items():
        np.testing.assert_allclose(m[name], x, rtol=1e-10, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(m["chance"][name], chance[name][:, 0], rtol=1e-10, err_msg=name)
        known = m[name][np.isfinite(m[name])]
        assert ((known >= 0) & (known <= 1 + 1e-12)).all()
    shown = heads.patterns(config, params, tokens)
    start, stop = induction_task(config).read
    np.testing.assert_allclose(shown[-1][:, :, start:stop], patterns[-1][:, :, start:stop], atol=1e-10)
    assert np.isnan(shown[-1][:, :, :start]).all()
    assert np.isnan(shown[-1][:, :, stop:]).all()


@pytest.mark.parametrize("fields", NETWORKS.values(), ids=NETWORKS)
def test_losses_are_those_of_training_with_a_head_taken_out(fields):
    config = dataclasses.replace(SMALL, **fields)
    task, params, key = induction_task(config), drawn(config), jax.random.key(3)
    examples, (tokens, copies) = task.sample(key, 6), task.draw(key, 6)
    evaluate = jax.jit(make_program(config).evaluate)
    m = as_numpy(heads.scores(config, params, tokens, copies))
    np.testing.assert_allclose(m["loss"], evaluate(params, examples).loss, rtol=1e-12)
    for layer, head in np.ndindex(config.n_layers, config.n_heads):
        without = jax.tree.map(np.array, params)
        without[f"blocks_{layer}"]["attn"]["W_O"][head] = 0
        np.testing.assert_allclose(m["loss_without"][layer, head], evaluate(without, examples).loss, rtol=1e-12)
        left = heads.scores(config, without, tokens, copies)["induction_any_copy"].max()
        np.testing.assert_allclose(m["induction_without"][layer, head], left, rtol=1e-10)


def test_networks_are_mapped_over_and_compiled_once():
    networks = [drawn(SMALL, seed) for seed in range(3)]
    sequences = heads.sequences(SMALL, 4)
    stacked = jax.tree.map(lambda *x: np.stack(x), *networks)
    together = jax.vmap(lambda params: heads.scores(SMALL, params, *sequences))(stacked)
    compiled = []
    for i, params in enumerate(networks):
        alone = heads.scores(SMALL, params, *sequences)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-10), together, alone)
        compiled.append(heads.scores._cache_size())  # pyright: ignore[reportAttributeAccessIssue]
    assert len(set(compiled)) == 1


def test_every_network_is_measured_on_the_same_sequences():
    tokens, copies = heads.sequences(SMALL)
    assert len(tokens) == heads.N_SEQUENCES
    other, _ = heads.sequences(dataclasses.replace(SMALL, n_layers=1, dtype="float32"))
    np.testing.assert_array_equal(tokens, other)
    for row, starts in zip(tokens, copies):
        assert len({tuple(row[start : start + 4]) for start in starts}) == 1


def test_another_task_is_refused():
    with pytest.raises(BadInput, match="task"):
        heads.sequences(Config())
    with pytest.raises(BadInput, match="task"):
        heads.scores(Config(), {}, *heads.sequences(SMALL, 2))


# --- kinds ------------------------------------------------------------------------------------------------------------


def measured(T: int | None = None, L=2, H=2, C=3, seed=0, **changes) -> dict[str, Any]:
    """A random result of `heads.scores`. If T is given, it has a leading axis of T checkpoints."""
    rng = np.random.default_rng(seed)
    lead = () if T is None else (T,)
    sizes = {"previous_token_by_block": (C,), "induction_by_copy": (C - 1,)}
    m: dict[str, Any] = {name: rng.uniform(0, 0.1, (*lead, L, H, *sizes.get(name, ()))) for name in heads.SCORES}
    m["previous_token_by_block"][..., L - 1, :, 0] = np.nan
    m["chance"] = {name: np.full((*lead, L, *sizes.get(name, ())), 0.1) for name in heads.SCORES}
    m |= {name: rng.uniform(0, 3, (*lead, L, H)) for name in head_tables.WITHOUT}
    return m | {"loss": rng.uniform(1, 2, lead)} | changes


def test_the_random_results_have_the_names_and_shapes_of_scores():
    params, sequences, made = drawn(SMALL), heads.sequences(SMALL), measured()
    shapes = jax.eval_shape(lambda: heads.scores(SMALL, params, *sequences))
    assert jax.tree.structure(made) == jax.tree.structure(shapes)
    jax.tree.map(lambda x, y: (np.shape(x) == y.shape) or pytest.fail(f"{np.shape(x)} {y}"), made, shapes)


def test_a_head_of_one_block_is_a_previous_token_head():
    m = measured()
    m["previous_token_by_block"][0, 1] = 0.3, 0.9, 0.02
    m["previous_token"][0, 1] = 0.4
    m["chance"]["previous_token_by_block"][:] = 0.25, 0.1, 0.05
    kind = heads.kinds(m)["previous_token"]
    assert heads.best_head(kind.share) == (0, 1)
    assert (kind.score[0, 1], kind.place[0, 1]) == (0.9, 1)
    assert kind.share[0, 1] == pytest.approx(0.8 / 0.9)
    assert (kind.place[1] > 0).all()  # the last layer does not compute the first block
    assert head_tables.heads_of_kind(m, "previous_token") == "0.1: 0.90 in block 1"
    assert head_tables.heads_of_kind(m, "induction").startswith("none (")


def test_a_score_rises_where_it_passes_half_of_its_last_value():
    epochs = np.array([0, 10, 20, 30, 40])
    assert head_tables.rise(epochs, np.array([0, 0.1, 0.3, 0.7, 0.8])) == (20, 30)
    assert head_tables.rise(epochs, np.array([0.5, 0.1, 0.3, 0.7, 0.8])) == (0, 0)
    assert head_tables.rise(epochs, np.array([0, 0.1, 0.1, 0.2, 0.2])) is None
    assert head_tables.rise(epochs, np.array([0, 0.1, 0.3, 0.7, np.nan])) is None


def run_heads(T=5, learned: int | None = 20, seed=0, **options) -> head_tables.RunHeads:
    series = measured(T, seed=seed, **options)
    series["epoch"] = np.arange(T) * 10
    series["induction_any_copy"][:, 1, 0] = np.linspace(0.1, 0.9, T)
    series["previous_token_by_block"][:, 0, 1, 0] = np.linspace(0.1, 0.7, T)
    m = jax.tree.map(lambda x: x[-1], series)
    events = {} if learned is None else {"grokked": (learned - 10, learned)}
    timing = Timing(Outcome.LEARNED if events else Outcome.NOT_LEARNED, 40, False, unlimited=True, events=events)
    record = RunRecord(seed, Run(SMALL, seed), 40, 0, Status.TRAINED, 40)
    return head_tables.RunHeads(record, 40, m, timing, series)


def test_tables_give_medians_and_the_heads_of_each_run():
    runs = [run_heads(seed=0), run_heads(seed=1, learned=None)]
    for run, loss in zip(runs, (1.5, 2.5)):
        run.m["loss_without"][1, 0] = loss
    medians = dict(head_tables.medians_table(runs)[1])
    assert medians["best induction head: score"] == "0.90"
    assert medians["induction heads"] == "1"
    assert medians["learned by"].startswith("20")
    assert medians["induction by"].startswith("30")
    header, rows = head_tables.runs_table(runs)
    assert rows[0][1].startswith("0.1: 0.70 in block 0")
    assert rows[0][2].startswith("1.0: 0.90")
    at = header.index("without induction")
    assert [row[at] for row in rows] == ["1.5", "2.5"]
    assert [row[-1] for row in rows] == ["20", "-"]
    assert all(len(row) == len(header) for row in rows)
    header, rows = head_tables.every_head_table([(run.name, run.m) for run in runs])
    assert [row[1] for row in rows] == ["0.0", "0.1", "1.0", "1.1"] * 2
    assert rows[2][2].endswith(")")
    assert "(- " in rows[2][2]
    assert all(len(row) == len(header) for row in rows)


# --- figures ----------------------------------------------------------------------------------------------------------


def curves_of(run) -> RunCurves:
    epochs = run.series["epoch"]
    losses, accuracy = np.linspace(4, 0.3, len(epochs)), np.linspace(0, 1, len(epochs))
    return RunCurves(epochs, losses, epochs, losses + 0.1, accuracy, accuracy, int(epochs[-1]))


def line(axes, label):
    (found,) = (line for line in axes.lines if line.get_label() == label)
    return found


def test_heads_over_training_are_lines_and_no_texts_overlap(monkeypatch):
    run = run_heads()
    figure = figures.heads_over_training_figure(run, curves_of(run))
    loss, previous, induction = figure.axes
    np.testing.assert_array_equal(line(loss, "test").get_data(), [run.series["epoch"] + 1, curves_of(run).test_loss])
    np.testing.assert_array_equal(line(loss, "learned by 20").get_xdata(), 21)
    assert previous.get_ylabel().endswith("in block 0")
    np.testing.assert_array_equal(
        line(previous, "head 0.1").get_ydata(), run.series["previous_token_by_block"][:, 0, 1, 0]
    )
    assert not [drawn for drawn in previous.lines if drawn.get_label() == "head 1.0"]  # nothing is computed there
    np.testing.assert_array_equal(line(induction, "head 1.0").get_ydata(), run.series["induction_any_copy"][:, 1, 0])
    assert len({to_hex(line(induction, f"head {head}").get_color()) for head in ("0.0", "0.1", "1.0", "1.1")}) == 4
    assert not collisions(figure, monkeypatch)
    many = run_heads(L=4, H=8, learned=None)
    figure = figures.heads_over_training_figure(many, curves_of(many))
    assert "learned" not in words(figure)
    _, labels = figure.axes[2].get_legend_handles_labels()
    assert len(labels) == 13
    assert not collisions(figure, monkeypatch)


def test_the_best_heads_of_runs_are_thin_lines_and_a_median(monkeypatch):
    runs = [run_heads(), run_heads(seed=1, learned=None), run_heads(seed=2, learned=30)]
    figure = figures.heads_of_runs_figure(runs, "wd=1")
    previous, induction = figure.axes
    for axes, kind in ((previous, "previous_token"), (induction, "induction")):
        thin = [drawn for drawn in axes.lines if drawn.get_linewidth() == 0.5]
        for drawn, run in zip(thin, runs, strict=True):
            np.testing.assert_array_equal(drawn.get_ydata(), head_tables.best_share(run.series, kind))
        np.testing.assert_array_equal(line(axes, "a run learned").get_xdata(), [21, 31])
    assert "wd=1: 3 runs" in words(figure)
    assert not collisions(figure, monkeypatch)
    assert not collisions(figures.heads_of_runs_figure(runs[1:2]), monkeypatch)


@pytest.mark.parametrize(
    "fields", [{"seq_len": 60, "repeat_len": 15}, {"seq_len": 5, "repeat_len": 2, "n_repeats": 2, "n_layers": 1}]
)
def test_patterns_are_those_of_the_best_heads_with_the_copies_boxed(fields, monkeypatch):
    config = dataclasses.replace(SMALL, **fields)
    params, (tokens, copies), m = drawn(config), heads.sequences(config), measured(L=config.n_layers)
    if config.n_layers == 1:
        m["previous_token_by_block"][:] = 0.5
    figure = figures.head_patterns_figure(config, params, m)
    task = induction_task(config)
    patterns = heads.patterns(config, params, tokens[:1])
    for axes, kind in zip(figure.axes, head_tables.KINDS):
        layer, head = heads.best_head(heads.kinds(m)[kind].share)
        drawn_image: Any = axes.images[0].get_array()
        image = drawn_image.filled(np.nan)
        seen = np.tri(task.seq_len, dtype=bool)
        np.testing.assert_array_equal(image[seen], np.asarray(patterns[layer][0, head])[seen])
        assert np.isnan(image[~seen]).all()
        assert f"head {layer}.{head}" in axes.get_title()
        boxes = [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
        pairs = [(c, b) for c in range(task.n_repeats) for b in range(c)]
        assert boxes == [(copies[0][b] - 0.5, copies[0][c] - 0.5) for c, b in pairs]
    assert not collisions(figure, monkeypatch)
