"""Figures hold the data put in, name what they show, and no texts overlap."""

import functools
import itertools
from typing import NamedTuple

import jax
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from jaxgrok import figures, measures
from jaxgrok.config import Config, Run
from jaxgrok.figures import circuits, over_training, style, timing
from jaxgrok.figures.write import _name
from jaxgrok.measures import all_pairs, fourier
from jaxgrok.nets.model import make_model
from jaxgrok.stats import Arrival
from jaxgrok.store.curves import RunCurves
from jaxgrok.store.events import Outcome, Timing
from jaxgrok.store.results import Cell, RunRecord, Status
from jaxgrok.tables.sizes import AtSize, Sizes
from jaxgrok.tables.write import markdown
from jaxgrok.tasks import make_task

TRANSFORMER = Config(p=12, n_heads=2, d_model=8, d_mlp=10)
MLP = Config(arch="mlp", p=5, d_mlp=4)
OF_ONE_NETWORK = [
    figures.spectra_figure,
    figures.neuron_waves_figure,
    figures.neuron_spectra_figure,
    figures.logit_spectrum_figure,
    figures.clusters_figure,
    figures.attention_figure,
    figures.embedding_circles_figure,
]
OF_RUNS = [
    figures.losses_over_training_figure,
    figures.gini_figure,
    figures.weights_figure,
    figures.keys_of_runs_figure,
]
OF_ONE_RUN = [
    figures.excluded_per_key_figure,
    figures.spectra_over_training_figure,
    figures.alpha_over_training_figure,
]
STAGES = {
    "memorisation": (0, 150),
    "generalisation": (4000, 6000),
    "clean-up": (5000, 7000),
    "stability": (7000, np.inf),
}


def drawn_texts(figure: Figure, monkeypatch) -> list[tuple[str, Bbox]]:
    """Every text that a figure draws, and where."""
    found, draw = [], Text.draw

    def noted(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), self.get_window_extent(renderer)))
        return draw(self, renderer, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Text, "draw", noted)
        figure.draw_without_rendering()
    return found


def collisions(figure: Figure, monkeypatch) -> list:
    """Pairs of texts that overlap by more than a pixel, and texts that leave the figure."""
    texts = drawn_texts(figure, monkeypatch)
    assert texts
    outside = [text for text, box in texts if min(*box.min, *(figure.bbox.max - box.max)) < -1]

    def overlap(x: Bbox, y: Bbox) -> bool:
        return np.min(np.minimum(x.max, y.max) - np.maximum(x.min, y.min)) > 1

    return outside + [(a, b) for (a, x), (b, y) in itertools.combinations(texts, 2) if overlap(x, y)]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


# --- one network ------------------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """The arguments of a figure of one network, and the network's activations on all pairs."""

    arguments: tuple
    neurons: np.ndarray
    logits: np.ndarray
    pattern: np.ndarray | None

    def figure(self, draw, **changes):
        config, params, m = self.arguments
        return draw(config, params | changes.pop("params", {}), m | changes)


def network_of(config, keys) -> Drawn:
    """A network of drawn weights with these keys, and the measures that figures show, named as in `measures.all`."""
    tokens = np.zeros((1, 3), np.int32)
    shapes = jax.eval_shape(make_model(config, make_task(config)).init, jax.random.key(0), tokens)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.5).astype(x.dtype), shapes)

    @jax.jit
    def measure(params):
        net = all_pairs.run_network(config, params)
        fits = fourier.fit_neurons(net.of_neurons)
        return {
            "W_E_frequency_norms": fourier.frequency_norms(net.W_E),
            "W_L_frequency_norms": fourier.frequency_norms(net.W_L),
            "neuron_frequency": fits.index + 1,
            "neuron_fve": fits.fve,
            "neuron_clusters": fourier.cluster_sizes(fits, config.p // 2),
            "neurons_unclustered": (fits.fve <= fourier.CLUSTERED).sum(),
            "neurons_never_active": (net.neurons <= 0).all(axis=(0, 1)).sum(),
            **with_keys(keys, config.p // 2),
            "attention_score_frequency": measures.circuits.attention_measures(net.stream)["attention_score_frequency"],
            "principal_components": measures.circuits.principal_components(net.W_E),
        }, (net.neurons, net.logits, None if net.stream is None else net.stream.pattern)

    m, activations = jax.tree.map(np.asarray, measure(params))
    return Drawn((config, params, m), *activations)


def with_keys(keys, K=6) -> dict:
    return {"key_frequencies": {"keys": np.isin(np.arange(1, K + 1), keys)}}


@pytest.fixture(scope="module")
def transformer():
    return network_of(TRANSFORMER, [2, 6])


@pytest.fixture(scope="module")
def mlp():
    return network_of(MLP, [1])


def test_what_these_tests_draw_is_named_and_shaped_as_measures_are(transformer):
    config, params, m = transformer.arguments
    split = measures.split_of(config, 0.5, 0)
    measured = jax.eval_shape(lambda: measures.measure(config, params, split))  # nothing is computed
    series = {name: x for name, x in series_of([0]).items() if name not in ("epoch", "sum_squared_weights")}
    for drawn, checkpoints in ((m, 0), (series, 1)):
        for path, x in jax.tree.leaves_with_path(drawn):
            found = functools.reduce(lambda found, entry: found[entry.key], path, measured)
            assert found.shape == x.shape[checkpoints:], path
    assert set(measured["sum_squared_weights"]) >= set(series_of([0])["sum_squared_weights"])


@pytest.mark.parametrize("draw", OF_ONE_NETWORK)
def test_figures_of_a_network_name_its_keys_and_no_texts_overlap(draw, transformer, mlp, monkeypatch):
    figure = transformer.figure(draw)
    assert not collisions(figure, monkeypatch)
    assert words(mlp.figure(draw))
    if draw is not figures.attention_figure:
        assert "keys 2, 6" in words(figure)
        assert "no keys" in words(transformer.figure(draw, **with_keys([])))


def test_texts_that_collide_are_seen(transformer, monkeypatch):
    figure = transformer.figure(figures.spectra_figure)
    figure.text(0.99, 0.5, "what leaves the figure")
    figure.text(0.3, 0.5, "one")
    figure.text(0.3, 0.5, "two")
    assert collisions(figure, monkeypatch) == ["what leaves the figure", ("one", "two")]


def test_spectra_are_bars_with_coloured_keys_and_the_rule(transformer):
    m = transformer.arguments[2]
    figure = transformer.figure(figures.spectra_figure)
    for axes, name in zip(figure.axes, ("W_E_frequency_norms", "W_L_frequency_norms")):
        np.testing.assert_array_equal([bar.get_height() for bar in axes.patches], m[name])
        grey = [mpl.colors.same_color(bar.get_facecolor(), style.OTHER) for bar in axes.patches]
        assert grey == [k not in (2, 6) for k in range(1, 7)]
        assert axes.lines[0].get_ydata()[0] == pytest.approx(m[name].max() / 4)
        assert [text.get_text() for text in axes.texts] == ["2", "6"]


def test_a_neuron_is_its_waves_and_a_residual(transformer):
    figure = transformer.figure(figures.neuron_waves_figure, **with_keys(range(1, 7)))
    panels = [axes for axes in figure.axes if axes.images]
    columns = len(panels) // 3
    assert columns >= 2
    for i in range(columns):
        activation, waves, residual = (np.asarray(axes.images[0].get_array()) for axes in panels[i::columns])
        neuron, k, fve = (float(word) for word in panels[i].get_title().replace(",", "").split() if word[0].isdigit())
        np.testing.assert_allclose(activation, transformer.neurons[:, :, int(neuron)], atol=1e-5)
        np.testing.assert_allclose(waves + residual, activation, atol=1e-5)
        assert 1 - residual.var() / activation.var() == pytest.approx(fve, abs=6e-4)
        F = fourier.basis(12)
        outside = ~np.isin(fourier.frequency_of_row(12), [0, k])
        np.testing.assert_allclose((F @ waves @ F.T)[outside], 0, atol=1e-4)


def test_two_dimensional_spectra_are_the_norms_of_components_with_rows_named(transformer):
    F = fourier.basis(12)
    drawn = ((figures.neuron_spectra_figure, transformer.neurons), (figures.logit_spectrum_figure, transformer.logits))
    for draw, f in drawn:
        expected = np.linalg.norm(np.einsum("ia,jb,abm->ijm", F, F, f), axis=2)
        expected[0, 0] = np.nan
        everything, of_keys = (axes for axes in transformer.figure(draw).axes[:2])
        np.testing.assert_allclose(everything.images[0].get_array().filled(np.nan), expected, rtol=1e-4, atol=1e-4)
        rows = [0, 3, 4, 11]  # const, cos and sin of 2, and cos 6: p is even
        found = of_keys.images[0].get_array().filled(np.nan)
        np.testing.assert_allclose(found, expected[np.ix_(rows, rows)], rtol=1e-4, atol=1e-4)
        assert [text.get_text() for text in of_keys.get_yticklabels()] == ["const", "cos 2", "sin 2", "cos 6"]
        assert [text.get_text() for text in everything.get_yticklabels()] == ["0", "2", "6"]


def test_clusters_show_each_neuron_in_the_order_of_its_frequency(transformer):
    planted = {
        "neuron_frequency": np.array([2, 6, 2, 1, 6, 3]),
        "neuron_fve": np.array([0.9, 0.99, 0.95, 0, 0.3, 0.5]),
        "neuron_clusters": np.array([0, 2, 0, 0, 0, 1]),
    }
    shares, sizes = transformer.figure(figures.clusters_figure, **planted).axes
    points = shares.collections[0]
    np.testing.assert_array_equal(points.get_offsets()[:, 1], [0, 0.95, 0.9, 0.5, 0.99, 0.3])
    two, six = (mpl.colors.to_hex(colour) for colour in style.colours_of([2, 6]).values())
    grey = mpl.colors.to_hex(style.OTHER)
    assert [mpl.colors.to_hex(colour) for colour in points.get_facecolors()] == [grey, two, two, grey, six, six]
    assert [bar.get_height() for bar in sizes.patches] == [0, 2, 0, 0, 0, 1]
    assert [text.get_text() for text in sizes.texts] == ["2", "1"]


def test_attention_is_the_pattern_to_a_by_head(transformer, mlp):
    best = transformer.arguments[2]["attention_score_frequency"]["frequency"]
    panels = [axes for axes in transformer.figure(figures.attention_figure).axes if axes.images]
    assert len(panels) == 2
    for head, axes in enumerate(panels):
        image = np.asarray(axes.images[0].get_array())
        np.testing.assert_allclose(image, transformer.pattern[:, :, head, 0], atol=1e-5)
        assert axes.get_title().startswith(f"head {head}: k = {best[head]}, FVE")
    assert "no attention" in words(mlp.figure(figures.attention_figure))


def test_a_planted_circle_is_drawn_as_one_joined_in_its_order(transformer):
    angle = 2 * np.pi * 5 * np.arange(12) / 12
    W_E = np.zeros((13, 8), np.float32)
    W_E[:12, :2] = 3 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    planted = {"params": {"embed": {"W_E": W_E}}, **with_keys([5])}
    axes = transformer.figure(figures.embedding_circles_figure, **planted).axes[0]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), W_E[:12, :2], atol=1e-5)
    x, y = axes.lines[0].get_data()
    np.testing.assert_allclose(np.diff(np.unwrap(np.arctan2(y, x))), 2 * np.pi / 12, atol=1e-5)
    assert "(no sine)" in words(transformer.figure(figures.embedding_circles_figure, **with_keys([6])))


def test_constant_neurons_and_keys_without_neurons_are_not_shown():
    m = {"neuron_frequency": np.array([1, 1, 4, 4]), "neuron_fve": np.array([0, 0, 0.4, 0.7])}
    assert circuits._best_neurons(m, [1, 2, 4]) == [(4, 3, 0.7)]


def test_spectra_of_many_runs_are_scaled_each_to_its_largest(transformer, monkeypatch):
    m = transformer.arguments[2]
    norms = m["W_E_frequency_norms"]
    keys = [[2, i % 6 + 1] if i else [] for i in range(50)]
    runs = {f"seed {i}": m | {"W_E_frequency_norms": (i + 1) * norms} | with_keys(keys[i]) for i in range(50)}
    figure = figures.key_spectra_figure(runs)
    W_E, W_L, clusters = figure.axes[:3]
    np.testing.assert_allclose(W_E.images[0].get_array()[7], norms / norms.max(), rtol=1e-6)
    np.testing.assert_array_equal(clusters.images[0].get_array()[7], m["neuron_clusters"])
    for axes in (W_E, W_L, clusters):
        dots = list(zip(*axes.lines[0].get_data()))
        assert [k for k, row in dots if row == 2] == [2, 3]
        assert not [k for k, row in dots if row == 0]
    assert "1 without keys" in W_E.get_title(loc="left")
    assert 10 <= len(W_E.get_yticks()) <= 20
    assert not collisions(figure, monkeypatch)


# --- over training ----------------------------------------------------------------------------------------------------


def series_of(epochs, keys=(2, 5), K=6, seed=0, waves=True):
    """A run with drawn measures at these epochs."""
    rng = np.random.default_rng(seed)
    T = len(epochs)

    def draw(*shape, known=True):
        return np.exp(rng.normal(size=(T, *shape))) if known else np.full((T, *shape), np.nan)

    known = waves and bool(len(keys))
    return {
        "epoch": np.asarray(epochs),
        "loss": {part: draw() for part in ("train", "test", "all")},
        "restricted_loss": {part: draw(known=known) for part in ("train", "test", "all")},
        "excluded_loss": {part: draw(known=known) for part in ("train", "all")},
        "excluded_loss_per_key": draw(K, known=waves),
        "excluded_loss_max_over_frequencies": draw(known=waves),
        "alpha": draw(K, known=waves),
        "W_E_frequency_norms": draw(K),
        "W_L_frequency_norms": draw(K),
        "gini": {"W_E": rng.uniform(size=T), "W_L": rng.uniform(size=T)},
        "sum_squared_weights": {
            name: draw() for name in ("embed.W_E", "blocks.0.mlp.W_in", "blocks.0.mlp.b_in", "total")
        },
        "key_frequencies": {"keys": np.tile(np.isin(np.arange(1, K + 1), keys), (T, 1))},
    }


LONG, SHORT = [0, 10, 100, 1000, 5000, 10_000], [0, 50, 100, 5000]


def line(axes, label):
    (found,) = (line for line in axes.lines if line.get_label() == label)
    return found


@pytest.mark.parametrize("draw", OF_RUNS + OF_ONE_RUN)
def test_figures_over_training_hold_every_case(draw, monkeypatch):
    def of(*series):
        return list(series) if draw in OF_RUNS else series[0]

    run = series_of(LONG)
    stages = dict(itertools.islice(STAGES.items(), 4))
    cases = [
        draw(of(run), stages),
        draw(of(run, series_of(SHORT, [1], seed=1), series_of(LONG, [], seed=2)), None),
        draw(of(run), {"generalisation": (0, 9000)}, scale="linear"),
        draw(of(series_of(LONG, range(1, 41), K=40)), stages),
    ]
    assert not collisions(cases[0], monkeypatch)
    assert not collisions(cases[3], monkeypatch)
    assert len(cases[0].axes) == len(cases[1].axes) + 1  # the stages
    if draw not in (figures.gini_figure, figures.weights_figure):
        assert "no keys" in words(draw(of(series_of(LONG, []))))
    if draw not in (figures.gini_figure, figures.weights_figure, figures.spectra_over_training_figure):
        assert "no waves" in words(draw(of(series_of(LONG, waves=False))))


def test_stages_are_bars_that_overlap_in_rows_of_their_own():
    figure = figures.gini_figure([series_of(LONG)], STAGES)
    strip, axes = figure.axes
    bars = {bar.get_y() + bar.get_height() / 2: (bar.get_x(), bar.get_x() + bar.get_width()) for bar in strip.patches}
    end, start = 10_001, pytest.approx(10_001 / 3000)
    assert bars == {0: (start, 151), 1: (4001, 6001), 2: (5001, 7001), 3: (7001, end)}
    assert [text.get_text() for text in strip.texts] == list(STAGES)
    assert len(axes.patches) == len(STAGES)


def test_one_run_is_drawn_as_it_is():
    s = series_of(LONG)
    axes = figures.losses_over_training_figure([s]).axes[0]
    for label, values in {
        "train": s["loss"]["train"],
        "test": s["loss"]["test"],
        "restricted, all": s["restricted_loss"]["all"],
        "restricted, train": s["restricted_loss"]["train"],
        "restricted, test": s["restricted_loss"]["test"],
        "excluded, train": s["excluded_loss"]["train"],
    }.items():
        np.testing.assert_array_equal(line(axes, label).get_data(), [s["epoch"] + 1, values])
    assert len(axes.lines) == 6


def test_several_runs_are_thin_lines_and_a_median():
    series = [series_of(epochs, seed=seed) for seed, epochs in enumerate((LONG, SHORT, LONG))]
    axes = figures.gini_figure(series).axes[0]
    median = line(axes, "$W_E$")
    np.testing.assert_array_equal(median.get_xdata(), np.unique(LONG + SHORT) + 1)
    assert median.get_ydata()[0] == np.median([s["gini"]["W_E"][0] for s in series])
    assert median.get_ydata()[-1] == np.median([s["gini"]["W_E"][-1] for s in series])
    thin = [drawn for drawn in axes.lines if drawn.get_linewidth() < 1]
    assert [len(drawn.get_xdata()) for drawn in thin] == [6, 4, 6] * 2


def test_keys_are_coloured_and_the_others_grey():
    s = series_of(LONG)
    for draw, name, others in (
        (figures.alpha_over_training_figure, "alpha", 4),
        (figures.spectra_over_training_figure, "W_E_frequency_norms", 4),
        (figures.excluded_per_key_figure, "excluded_loss_per_key", 0),
    ):
        axes = draw(s).axes[0]
        for k in (2, 5):
            np.testing.assert_array_equal(line(axes, f"k = {k}").get_ydata(), s[name][:, k - 1])
        assert sum(drawn.get_color() == style.OTHER for drawn in axes.lines) == others
    together = line(figures.excluded_per_key_figure(s).axes[0], "all keys together")
    np.testing.assert_array_equal(together.get_ydata(), s["excluded_loss"]["train"])


def test_the_keys_of_runs_stand_against_the_largest_of_the_others():
    s = series_of(LONG, [1, 3, 4])
    alpha, excluded = figures.keys_of_runs_figure([s, series_of(LONG, [])]).axes
    np.testing.assert_allclose(line(alpha, "one key").get_ydata(), np.median(s["alpha"][:, [0, 2, 3]], axis=1))
    others = line(alpha, "largest of the other k")
    np.testing.assert_array_equal(others.get_ydata(), s["alpha"][:, [1, 4, 5]].max(axis=1))
    np.testing.assert_array_equal(line(excluded, "all keys of a run").get_ydata(), s["excluded_loss"]["train"])


def test_weights_leave_out_what_no_axis_could_show():
    s = series_of(LONG)
    s["sum_squared_weights"]["blocks.0.mlp.b_in"] = np.full(6, 1e-9)
    (axes,) = figures.weights_figure([s]).axes
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"W_E", "W_in", "total"}
    np.testing.assert_array_equal(line(axes, "total").get_ydata(), s["sum_squared_weights"]["total"])


def test_an_axis_of_losses_has_a_floor():
    s = series_of(LONG)
    s["loss"]["train"][-2:] = 0, 1e-30
    (axes,) = figures.losses_over_training_figure([s]).axes
    assert axes.get_ylim()[0] == over_training.LOSS_FLOOR


# --- medians and thinning ---------------------------------------------------------------------------------------------


def test_the_median_makes_no_step_where_a_run_ends_or_diverges():
    epochs = np.arange(6)
    curves = [(epochs[:3], np.array([5.0, 4, 3])), (epochs, np.array([5.0, 2, np.nan, np.nan, 1, 1]))]
    at, middle = style.median_over_runs(curves)
    np.testing.assert_array_equal(at, epochs)
    np.testing.assert_array_equal(middle, [5, 3, 2.5, 2.5, 2.5, 2.5])
    assert len(style.median_over_runs([(epochs, np.full(6, np.nan))])[0]) == 0


@pytest.mark.parametrize("log", [False, True])
def test_the_median_of_settled_runs_makes_no_step_where_one_leaves(log):
    """Two runs settle at different values. A median over the runs that still train would jump from 2.5 to 4."""
    short, long = np.arange(50), np.arange(200)
    curves = [(short, np.where(short < 20, 8.0, 1.0)), (long, np.where(long < 20, 8.0, 4.0))]
    at, middle = style.median_over_runs(curves, log=log)
    np.testing.assert_array_equal(at, long)
    np.testing.assert_allclose(middle, np.where(long < 20, 8.0, 2.5))


def test_titles_say_what_the_median_does_with_runs_that_ended():
    kept = "ended runs keep their last value"
    assert style.name_median([100]) == "1 run"
    assert style.name_median([100, 100]) == "2 runs (thin) and their median"
    assert style.name_median([100, 0]) == f"2 runs (thin) and their median; {kept}"
    long, short = series_of(LONG), series_of(SHORT, seed=1)
    for draw in OF_RUNS:
        assert kept in words(draw([long, short]))
        assert kept not in words(draw([long, long]))


def test_medians_interpolate_as_the_axes_are():
    # Half way between 9 and 99 on the axis of log(epoch + 1), and half way between 1e-4 and 1 on one of log loss.
    epochs = np.array([9, 99])
    middle = [9, round(10**1.5 - 1), 99]
    curves = [(epochs, np.array([1, 1e-4])), (np.array(middle), np.array([1, 1e-2, 1e-4]))]
    at, values = style.median_over_runs(curves, log=True)
    np.testing.assert_array_equal(at, middle)
    assert values[1] == pytest.approx(1e-2, rel=0.05)
    # A zero has no logarithm. It stays a zero, and does not become a tiny number that would stretch the axis.
    curves = [(epochs, np.array([0.0, 4])), (np.array([9, 50]), np.full(2, 2.0))]
    _, values = style.median_over_runs(curves, log=True)
    np.testing.assert_allclose(values, [1, 1, 3])


def test_a_spike_survives_the_thinning_of_a_long_curve():
    values = np.ones(50_000)
    values[33_333] = 7
    epochs, thin = style.thinned(np.arange(50_000), values)
    assert len(epochs) == len(thin) <= style.MOST_POINTS
    assert thin.max() == 7
    # The last point of a noisy curve is the largest value of its stretch, as every other point is.
    _, thin = style.thinned(np.arange(50_000), np.where(np.arange(50_000) % 2, 1.0, 2.0))
    assert thin[-1] == thin[-2] == 2
    _, thin = style.thinned(np.arange(50_000), np.where(np.arange(50_000) % 2, 2.0, 1.0))
    assert thin[-1] == thin[-2] == 2


# --- when runs grok ---------------------------------------------------------------------------------------------------


def cell_of(runs) -> Cell:
    """A cell of runs, each given as (the epoch at which it grokked or None, its last epoch, its outcome)."""
    records, timings = [], []
    for seed, (grokked, last, outcome) in enumerate(runs):
        events = {} if grokked is None else {"grokked": (grokked - 10, grokked)}
        timings.append(Timing(outcome, last, False, events=events))
        records.append(RunRecord(seed, Run(TRANSFORMER, seed, frac=0.3), last, 0, Status.TRAINED, last))
    return Cell((("wd", 1.0),), records, timings)


def of_marker(axes, marker) -> np.ndarray:
    """The points of a survival figure that have this marker."""
    return np.concatenate([np.transpose(line.get_data()) for line in axes.lines if line.get_marker() == marker])


def test_diverged_runs_never_arrive_and_have_a_marker_of_their_own(monkeypatch):
    runs = [
        (100, 900, Outcome.GROKKED),
        (None, 200, Outcome.DIVERGED),
        (None, 300, Outcome.DIVERGED),
        (400, 900, Outcome.GROKKED),
        (None, 900, Outcome.MEMORISED_ONLY),
    ]
    figure = figures.survival_figure([cell_of(runs)])
    (axes,) = figure.axes
    time, share = line(axes, "wd=1: 2 of 5").get_data()
    # A fifth arrives at 100 and another at 400. The two that diverged stay in the share; 1 minus Kaplan-Meier would
    # count them as runs that arrive later, and fall from 4/5 to 2/5 at 400.
    assert share[np.searchsorted(time, 399, side="right") - 1] == pytest.approx(4 / 5)
    assert share[-1] == pytest.approx(3 / 5)
    np.testing.assert_allclose(of_marker(axes, timing.RULED_OUT), [[200, 4 / 5], [300, 4 / 5]])
    np.testing.assert_allclose(of_marker(axes, timing.CENSORED), [[900, 3 / 5]])
    assert "a run diverged" in words(figure)
    assert not collisions(figure, monkeypatch)


def test_without_diverged_runs_all_that_have_not_arrived_are_crosses(monkeypatch):
    runs = [(100, 900, Outcome.GROKKED), (None, 200, Outcome.MEMORISED_ONLY), (None, 900, Outcome.NOT_MEMORISED)]
    figure = figures.survival_figure([cell_of(runs)] * 14)
    (axes,) = figure.axes
    assert len(of_marker(axes, timing.CENSORED)) == 2 * 14
    assert len(of_marker(axes, timing.RULED_OUT)) == 0
    assert "diverged" not in words(figure)
    assert not collisions(figure, monkeypatch)


def test_an_event_at_epoch_zero_and_cells_that_never_arrive_are_drawn():
    at_once, never = cell_of([(0, 0, Outcome.GROKKED)]), cell_of([(None, 50, Outcome.DIVERGED)] * 2)
    (axes,) = figures.survival_figure([at_once, never]).axes
    assert line(axes, "wd=1: 1 of 1").get_ydata()[-1] == 0
    np.testing.assert_array_equal(line(axes, "wd=1: 0 of 2").get_ydata(), 1)


def test_a_median_interval_is_open_only_where_it_has_no_upper_bound():
    """The shade ends with the longest run where the interval has no upper bound."""
    cell = cell_of([(200 + 10 * i, 2000, Outcome.GROKKED) for i in range(3)] + [(None, 2000, Outcome.LOST)] * 2)
    epochs = np.arange(0, 2000, 10)
    curves = RunCurves(epochs, epochs + 1.0, epochs, epochs + 1.0, 0.0 * epochs, 0.0 * epochs, 2000)
    loss, _ = figures.curves_figure(cell, [curves] * 5).axes
    (shade,) = loss.patches
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == (201, 2001)


def test_train_losses_that_are_zero_are_drawn_where_the_median_run_has_some():
    """An earlier version did not record them: NaN at first, or None in all."""
    cell, epochs = cell_of([(200, 2000, Outcome.GROKKED)] * 3), np.arange(0, 2000, 10)

    def drawn(*shares):
        of_runs = [
            RunCurves(epochs, epochs + 1.0, epochs, epochs + 1.0, 0.0 * epochs, 0.0 * epochs, 2000, train_zero=share)
            for share in shares
        ]
        _, accuracy = figures.curves_figure(cell, of_runs).axes
        return [x for x in accuracy.lines if x.get_label() == "train losses that are exactly zero"]

    some = np.where(epochs < 500, np.nan, 0.5)
    (found,) = drawn(some, some, 0.0 * epochs)
    assert found.get_xdata()[0] == 1
    assert found.get_ydata()[-1] == 0.5
    assert not drawn(some, 0.0 * epochs, 0.0 * epochs)
    assert not drawn(None, None, None)


def test_bounds_of_the_crossover_that_do_not_exist_are_the_ends_of_the_axis(monkeypatch):
    arrivals = [Arrival(100, True)]
    sizes = Sizes([AtSize(10, [False], arrivals, [Arrival(500, False)]), AtSize(40, [True], arrivals, arrivals)])
    figure = figures.crossover_figure(sizes)
    assert (sizes.crossover.low, sizes.crossover.high) == (None, None)
    for axes in figure.axes:
        (shade,) = axes.patches
        assert (shade.get_x(), shade.get_x() + shade.get_width()) == pytest.approx(axes.get_xlim())
    assert not collisions(figure, monkeypatch)
    assert "no run has finished" in words(figures.crossover_figure(Sizes([])))


def test_a_name_from_a_file_cannot_leave_the_folder_or_break_a_table():
    assert _name("curves", "wd=0.1 lr=1e-05") == "curves-wd=0.1-lr=1e-05"
    assert "/" not in _name("curves", "task=../../etc/x\0")
    assert markdown(["a"], [["x|y\nz"]]).splitlines() == ["| a |", "| --- |", "| x\\|y z |"]
