"""Every measure of circuits against planted truth, slow float64 oracles, and the numbers of one released network."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrok import measures
from jaxgrok.config import Config
from jaxgrok.measures import ablations, circuits, fourier
from jaxgrok.measures.all_pairs import Stream
from jaxgrok.nets import interop
from jaxgrok.nets.model import make_model
from jaxgrok.tasks import modular_task
from tests.reference import analysis

RELEASED = "reference/published/wd_10-1_mod_addition_loss_curve.pth"
TINY = Config(p=12, n_heads=2, d_model=8, d_mlp=10, dtype="float64")
OPERATIONS = {1: "add", -1: "subtract"}


def params_of(config, seed=0):
    """Initial parameters times 1.5 plus noise, so that attention is neither flat nor saturated, and neurons switch."""
    tokens = np.zeros((1, 3), np.int32)
    leaves, tree = jax.tree.flatten(
        make_model(config, modular_task(config)).init(jax.random.key(seed), tokens)["params"]
    )
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [1.5 * np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(x.dtype) for x in leaves]
    )


def weights_of(config, params):
    """The parameters by name without their place, as the oracle takes them."""
    state = interop.to_state(config, params, "transformer_lens")
    return {name.split(".")[-1]: np.asarray(x, np.float64) for name, x in state.items()}


def assert_agrees(ours, reference, rtol, atol: float = 0, path=""):
    """Every number of the reference is in ours, under the same names and within rtol. Sets and counts are equal."""
    if isinstance(reference, dict):
        per_key = [name for name in reference if name.split()[-1].isdigit()]
        if per_key:
            assert set(ours) == set(reference), path
        for name, value in reference.items():
            assert name in ours, f"{path}/{name}"
            assert_agrees(ours[name], value, rtol, atol, f"{path}/{name}")
    elif isinstance(reference, list):
        assert len(ours) == len(reference), path
        for i, value in enumerate(reference):
            assert_agrees(ours[i], value, rtol, atol, f"{path}[{i}]")
    elif isinstance(reference, int | np.integer):
        assert ours == reference, path
    else:
        np.testing.assert_allclose(ours, reference, rtol=rtol, atol=atol, err_msg=path)


# --- the released network ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(shared):
    reference = json.loads((shared / "reference/wd_10-1_analysis_float64.json").read_text())
    reference.pop("split")  # the arguments, which are not measures
    return reference


@functools.cache
def released(path, dtype):
    config, params, _ = interop.load(path)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    config = Config(dtype=dtype, d_mlp=config.d_mlp)
    return measures.to_json(config, measures.all(config, params, measures.split_of(config, 0.3, 1)))


# float64: the reference itself has losses near 1e-9 only to about 1e-8, because its code takes log_softmax.
# float32: logits near 60 are rounded to 4e-6, which is an absolute error in the log of a small loss.
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-6), ("float32", 1e-4)])
def test_every_number_of_the_released_network(shared, reference, dtype, rtol):
    pytest.importorskip("torch")
    ours = released(shared / RELEASED, dtype)
    assert_agrees(ours, reference, rtol)
    json.dumps(ours, allow_nan=False)


def test_a_planted_error_is_noticed(shared, reference):
    pytest.importorskip("torch")
    ours = released(shared / RELEASED, "float64")
    for change in (
        {"restricted_loss": ours["restricted_loss"] | {"train": ours["restricted_loss"]["train"] * (1 + 2e-6)}},
        {"alpha": ours["alpha"] | {"38": 0.1}},
        {"W_E_frequency_norms": ours["W_E_frequency_norms"][:-1]},
        {"neuron_clusters": ours["neuron_clusters"] | {"6": 46}},
        {"key_frequencies": ours["key_frequencies"] | {"keys": [6, 23, 37, 39]}},
        {"gini": {"W_E": ours["gini"]["W_E"]}},
    ):
        with pytest.raises(AssertionError):
            assert_agrees(ours | change, reference, 1e-6)


def test_controls_of_the_released_network(shared):
    pytest.importorskip("torch")
    ours = released(shared / RELEASED, "float64")
    controls = ours["controls"]
    # Five frequencies that are not keys carry almost nothing. Without them the loss is the same, and with them alone it
    # is that of chance.
    assert controls["excluded_loss"]["train"]["max"] < 1.1 * ours["loss"]["train"]
    assert controls["restricted_loss"]["all"]["min"] > 0.95 * np.log(113)
    assert controls["logit_fve"]["max"] < 1e-5
    assert controls["ablation_loss"]["remove_key_from_neurons"]["max"] < 1.1 * ours["loss"]["all"]
    assert controls["ablation_loss"]["keep_key_blocks"]["min"] > 4
    # Ten random directions of 512 carry little, so little is lost without them.
    assert controls["ablation_loss"]["mlp_on_W_L_key_directions"]["min"] > 4
    assert controls["ablation_loss"]["mlp_on_their_null_space"]["max"] < 1e-5


# --- small networks against the oracle --------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "sign", "keys"), [(12, 1, [2, 6]), (9, -1, [1, 4])])
def test_every_measure_against_the_slow_oracle(p, sign, keys):
    config = Config(task=OPERATIONS[sign], p=p, n_heads=2, d_model=8, d_mlp=10, dtype="float64")
    params, split = params_of(config), measures.split_of(config, 0.4, 3)
    ours = measures.to_json(config, measures.all(config, params, split, fourier.mask_of(keys, p)))
    slow = analysis.everything(weights_of(config, params), p, split.train, keys, sign)
    # Both are in float64. 1e-9 allows for sums in another order, 1e-14 for shares near zero, which the oracle subtracts
    # from 1.
    assert_agrees(ours, slow, 1e-9, 1e-14)
    assert ours["accuracies"]["all"] == ours["accuracy"]
    assert ours["waves"] == {1: "a + b", -1: "a - b"}[sign]


def test_the_mlp_against_the_slow_oracle():
    config, p, keys = Config(p=9, arch="mlp", d_mlp=14, dtype="float64"), 9, [2, 3]
    params, split = params_of(config), measures.split_of(config, 0.4, 3)
    ours = measures.to_json(config, measures.all(config, params, split, fourier.mask_of(keys, p)))
    a, b = np.divmod(np.arange(p * p), p)
    n = np.maximum(params["W_in"][a] + params["W_in"][b] + params["b_in"], 0)
    L = n @ params["W_out"] + params["b_out"]

    def loss_without(k):
        lost = analysis.project(n, analysis.block_directions(k, p)) @ params["W_out"]
        return analysis.cross_entropy(L - lost, (a + b) % p).mean()

    slow = analysis.logit_measures(L, split.train, keys)
    slow["ablation_loss"] = {
        "keep_key_blocks": slow.pop("keep_key_blocks"),
        "remove_key_from_neurons": {str(k): loss_without(k) for k in keys},
    }
    best, fve, _ = analysis.neuron_fits(n, p)
    slow |= {"neuron_frequency": best.tolist(), "neuron_fve": fve.tolist(), "loss_all_classes": slow["loss"]}
    slow["W_E_frequency_norms"] = analysis.frequency_norms(params["W_in"]).tolist()
    slow["W_L_frequency_norms"] = analysis.frequency_norms(params["W_out"].T).tolist()
    assert_agrees(ours, slow, 1e-9, 1e-14)
    assert ours["attention_to_equals_mean"] is None
    assert "attention_zero" not in ours["ablation_loss"]
    assert ours["ablation_loss"]["mlp_on_W_L_key_directions"] > 0


def test_with_two_layers_the_measures_are_those_of_the_last_block():
    config = Config(p=7, n_layers=2, n_heads=2, d_model=8, d_mlp=10, dtype="float64")
    params, split = params_of(config), measures.split_of(config, 0.4, 0)
    m = measures.all(config, params, split, fourier.mask_of([3], 7))
    task = modular_task(config)
    logits, activations = make_model(config, task).apply({"params": params}, task.pairs(np.arange(49), 0).tokens)
    targets = task.labels(0)
    loss = analysis.cross_entropy(np.array(logits[:, 0, :7]), targets).mean()
    assert float(m["loss"]["all"]) == pytest.approx(loss, rel=1e-10)
    mlp, before = params["blocks_1"]["mlp"], np.asarray(activations["blocks.1.hook_resid_pre"][:, 0])
    out = np.maximum(before @ mlp["W_in"] + mlp["b_in"], 0) @ mlp["W_out"] + mlp["b_out"]
    without = np.array((before + out) @ params["unembed"]["W_U"][:, :7])
    loss = analysis.cross_entropy(without, targets).mean()
    assert float(m["ablation_loss"]["attention_zero"]) == pytest.approx(loss, rel=1e-10)


def test_a_network_without_the_class_of_equals_has_the_same_measures():
    params, split, keys = params_of(TINY), measures.split_of(TINY, 0.4, 0), fourier.mask_of([2], 12)
    without = params | {"unembed": {"W_U": params["unembed"]["W_U"][:, :12]}}
    one, other = (measures.all(TINY, x, split, keys) for x in (params, without))
    assert_agrees(jax.tree.map(float, other["loss_all_classes"]), jax.tree.map(float, one["loss"]), 1e-12)
    skip_of_one, skip_of_other = (float(m["ablation_loss"]["mlp_skip_zero"]) for m in (one, other))
    assert_agrees(skip_of_other, skip_of_one, 1e-12)


# --- planted logits ---------------------------------------------------------------------------------------------------


def planted(p, amplitudes: dict[int, float], operation="add") -> tuple[Any, np.ndarray]:
    """(logits [P, P, P], s): the logits are the sum over k of amplitudes[k] cos(w_k (s - c))."""
    s = fourier.wave_argument(modular_task(Config(task=operation, p=p)))
    d = s[..., None] - np.arange(p)
    return sum(x * np.cos(2 * np.pi * k * d / p) for k, x in amplitudes.items()), s


@functools.partial(jax.jit, static_argnums=1)
def fit_of(logits, p_operation, keys):
    s = fourier.wave_argument(modular_task(Config(p=p_operation[0], task=p_operation[1])))
    waves = circuits.waves_of(logits, s)
    return waves.alpha, circuits.wave_fit(waves, keys)["logit_fve"]


@pytest.mark.parametrize("operation", ["add", "subtract"])
@pytest.mark.parametrize("p", [2, 3, 6, 7, 9, 16, 59])
def test_planted_waves_give_back_k_alpha_and_fve(p, operation):
    rng = np.random.default_rng(p)
    for k in range(1, p // 2 + 1):
        logits, _ = planted(p, {k: 2.5}, operation)
        alpha, fve = fit_of(logits + 7.0, (p, operation), fourier.mask_of([k], p))
        np.testing.assert_allclose(alpha, 2.5 * fourier.mask_of([k], p), atol=1e-11)
        assert float(fve) == pytest.approx(1, abs=1e-11)
        # The W_L of a network that writes these logits is cos_k of c, and sin_k if there is one.
        assert int(fourier.frequency_norms(logits[0].T).argmax()) + 1 == k
    every = dict(zip(range(1, p // 2 + 1), rng.normal(size=p // 2), strict=True))
    logits, _ = planted(p, every, operation)
    alpha, fve = fit_of(logits, (p, operation), np.ones(p // 2, bool))
    np.testing.assert_allclose(alpha, list(every.values()), atol=1e-11)
    assert float(fve) == pytest.approx(1, abs=1e-11)


def test_a_wave_of_the_wrong_argument_is_not_found():
    # A planted error of sign: waves of a - b explain nothing in the task a + b.
    logits, _ = planted(9, {2: 2.5}, "subtract")
    alpha, fve = fit_of(logits, (9, "add"), fourier.mask_of([2], 9))
    np.testing.assert_allclose(alpha, 0, atol=1e-12)
    assert float(fve) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("p", "sign"), [(7, 1), (8, -1)])
def test_logit_measures_against_the_slow_oracle(p, sign):
    task = modular_task(Config(task=OPERATIONS[sign], p=p))
    logits, s = planted(p, {1: 3.0, 2: 1.0}, OPERATIONS[sign])
    logits = logits + np.random.default_rng(p).normal(size=logits.shape)
    train, _ = task.split_indices(0.4, 0)
    is_train = np.isin(np.arange(p * p), train).reshape(p, p)
    keys = [1, p // 2]
    slow = analysis.logit_measures(logits.reshape(p * p, p).copy(), train, keys, sign)
    mask, split = fourier.mask_of(keys, p), measures.Split(task.labels(0), train)

    @jax.jit
    def measured(logits):
        waves = circuits.waves_of(logits, s)
        each = circuits.excluded_loss_of_each(logits, waves, split)
        return {
            "restricted_loss": circuits.restricted_loss(waves, is_train, mask),
            "excluded_loss": circuits.excluded_loss(logits, waves, split.labels.reshape(p, p), is_train, mask),
            "excluded_loss_per_key": {str(k): each[k - 1] for k in keys},
            "excluded_loss_max_over_frequencies": each.max(),
            **circuits.wave_fit(waves, mask),
        }

    ours = measured(logits)
    ours["excluded_loss"].pop("test")  # not among the measures
    assert_agrees(ours, {name: slow[name] for name in ours}, 1e-10)


def memoriser(p, margin=20.0):
    """(logits [P, P, P], is_train). Train pairs are right, with loss 2e-7. Every other pair is as confidently wrong, at
    a random class."""
    task = modular_task(Config(p=p))
    labels, (train, _) = task.labels(0), task.split_indices(0.3, 0)
    is_train = np.isin(np.arange(p * p), train)
    wrong = (labels + np.random.default_rng(0).integers(1, p, size=p * p)) % p
    return (margin * np.eye(p)[np.where(is_train, labels, wrong)]).reshape(p, p, p), is_train.reshape(p, p)


def test_a_memoriser_has_no_key_and_a_high_restricted_loss():
    p = 113
    logits, is_train = memoriser(p)
    # Each pair has one neuron, which is 1 on that pair and 0 elsewhere, and writes its answer: W_L [P, pairs] is the
    # logits.
    chosen = np.random.default_rng(0).choice(p * p, 40, replace=False)
    neurons = np.zeros((p * p, 40))
    neurons[chosen, np.arange(40)] = 1
    fits = jax.jit(lambda n: fourier.fit_neurons(fourier.neuron_blocks(n)))(neurons.reshape(p, p, 40))
    clusters = fourier.cluster_sizes(fits, p // 2)
    W_L_norms, W_E_norms = fourier.frequency_norms(logits.reshape(-1, p).T), fourier.frequency_norms(neurons[:p])
    rules = fourier.key_frequencies(W_L_norms, W_E_norms, clusters)
    assert not rules.keys.any()
    assert float(fits.fve.max()) < 0.01

    waves = circuits.waves_of(jnp.asarray(logits), fourier.wave_argument(modular_task(Config(p=p))))
    few, all_of_them = fourier.mask_of([3, 14, 35, 41, 52], p), np.ones(p // 2, bool)
    restricted = circuits.restricted_loss(waves, is_train, few)
    assert min(map(float, restricted.values())) >= 0.85 * np.log(p)
    # The limit of this measure: with every frequency, averaging over a + b carries the labels to the test pairs.
    assert float(circuits.restricted_loss(waves, is_train, all_of_them)["test"]) < 0.1 * np.log(p)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_row_space_spans_the_chosen_rows_and_no_more():
    rng = np.random.default_rng(0)
    rows, chosen = rng.normal(size=(9, 12)), np.array([0, 1, 0, 0, 1, 1, 0, 0, 0], bool)
    V = np.asarray(ablations.row_space(jnp.asarray(rows), jnp.asarray(chosen)))
    np.testing.assert_allclose(rows[chosen] @ V @ V.T, rows[chosen], atol=1e-12)
    assert np.trace(V @ V.T) == pytest.approx(3)
    rows[5] = rows[1] - 2 * rows[4]
    V = np.asarray(ablations.row_space(jnp.asarray(rows), jnp.asarray(chosen)))
    np.testing.assert_allclose(rows[chosen] @ V @ V.T, rows[chosen], atol=1e-12)
    assert np.trace(V @ V.T) == pytest.approx(2)
    assert not ablations.row_space(jnp.asarray(rows), jnp.zeros(9, bool)).any()


def test_principal_components_of_circles():
    p = 59
    x = 2 * np.pi * np.arange(p) / p
    circles = np.stack(
        [5 * np.cos(7 * x), 5 * np.sin(7 * x), 2 * np.cos(11 * x), 2 * np.sin(11 * x), np.ones(p)], axis=1
    )
    turned = circles @ np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    components = circuits.principal_components(jnp.asarray(turned))
    np.testing.assert_array_equal(components["frequency"][:4], [7, 7, 11, 11])
    np.testing.assert_allclose(components["share"][:4], 1, rtol=1e-10)
    np.testing.assert_allclose(components["variance"], [25 / 58, 25 / 58, 4 / 58, 4 / 58, 0], atol=1e-12)
    assert np.isnan(components["share"][4])


def test_attention_score_of_one_frequency():
    p = 12
    a, b = np.indices((p, p))
    wave = [np.cos(2 * np.pi * k * np.arange(p) / p) for k in (3, 6)]
    scores = np.zeros((p, p, 2, 3))
    for h in range(2):
        scores[..., h, 0], scores[..., h, 1] = 4 + wave[h][a] + 0.5 * wave[0][a], wave[h][b]
    pattern = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    unused: Any = None
    stream = Stream(unused, unused, unused, unused, jnp.asarray(scores), jnp.asarray(pattern))
    m: Any = circuits.attention_measures(stream)
    np.testing.assert_array_equal(m["attention_score_frequency"]["frequency"], [3, 6])
    # The energy of the alternating wave is 1, that of half a cosine 1/8.
    np.testing.assert_allclose(m["attention_score_frequency"]["fve"], [1, 8 / 9], rtol=1e-12)
    np.testing.assert_allclose(m["attention_pattern_mean"], pattern.mean(axis=(0, 1)), rtol=1e-12)


def test_stand_ins_are_neither_keys_nor_clusters():
    keys, clusters = jnp.asarray(fourier.mask_of([2, 5], 41)), jnp.zeros(20, int).at[jnp.array([4, 8, 11])].set(3)
    controls = ablations.draw_controls(0, keys, clusters)
    for stand_in in np.asarray(controls.stand_ins):
        taken = stand_in[[4, 8, 11]]
        assert len(set(taken)) == 3
        assert not set(taken) & {1, 4, 8, 11}
    assert controls.enough_stand_ins
    assert not ablations.draw_controls(0, keys, jnp.ones(20, int)).enough_stand_ins


# --- one call, many networks ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three():
    params = [params_of(TINY, seed) for seed in range(3)]
    splits = [measures.split_of(TINY, 0.4, seed) for seed in range(3)]
    return params, splits


def stack(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


@pytest.mark.parametrize("mapped", ["vmap", "lax.map"])
def test_mapped_over_networks_equals_one_at_a_time(three, mapped):
    params, splits = three
    keys = fourier.mask_of([2, 5], 12)
    one_at_a_time = stack([measures.all(TINY, p, s, keys) for p, s in zip(*three, strict=True)])

    def measure(params_and_split):
        params, split = params_and_split
        return measures.measure(TINY, params, split, keys)

    over = jax.vmap(measure) if mapped == "vmap" else functools.partial(jax.lax.map, measure)
    together = jax.jit(over)((stack(params), stack(splits)))
    # They differ only by the order of sums. The vectors of tied principal components are arbitrary, so they are not
    # compared.
    for tree in (one_at_a_time, together):
        tree.pop("principal_components")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), together, one_at_a_time)


def test_keys_given_and_found(three):
    params, splits = three
    found = measures.all(TINY, params[0], splits[0])
    np.testing.assert_array_equal(found["key_frequencies"]["keys"], measures.find_keys(TINY, params[0]))
    keys = fourier.mask_of([2, 5], 12)
    given = measures.all(TINY, params[0], splits[0], keys)
    np.testing.assert_array_equal(given["key_frequencies"]["keys"], keys)
    np.testing.assert_array_equal(given["key_frequencies"]["found"], found["key_frequencies"]["keys"])


def test_the_same_shapes_compile_once(three):
    params, splits = three
    keys = fourier.mask_of([2, 5], 12)
    measures.all(TINY, params[0], splits[0], keys)
    before = measures.all._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    measures.all(TINY, params[1], splits[1], fourier.mask_of([1], 12))
    assert measures.all._cache_size() == before  # pyright: ignore[reportAttributeAccessIssue]


def test_without_keys_the_measures_that_need_them_are_not_numbers(three):
    params, splits = three
    m = measures.all(TINY, params[0], splits[0], np.zeros(6, bool))
    out = measures.to_json(TINY, m)
    assert out["no_keys"]
    assert out["restricted_loss"] == {"all": None, "train": None, "test": None}
    assert out["excluded_loss"] == {"all": None, "train": None}
    for name in ("logit_fve", "logit_approximation_loss", "W_L_residual"):
        assert out[name] is None
    for name in ("alpha", "excluded_loss_per_key", "mlp_readout_fve"):
        assert out[name] == {}
    for name in ("keep_key_blocks", "mlp_on_W_L_key_directions", "mlp_on_their_null_space"):
        assert out["ablation_loss"][name] is None
        assert out["controls"]["ablation_loss"][name] == {"median": None, "min": None, "max": None}
    # The others are still numbers.
    assert out["loss"]["all"] > 0
    assert out["excluded_loss_max_over_frequencies"] > 0
    assert out["ablation_loss"]["mlp_skip_zero"] > 0
    json.dumps(out, allow_nan=False)


def test_every_frequency_a_key_leaves_no_controls(three):
    params, splits = three
    out = measures.to_json(TINY, measures.all(TINY, params[0], splits[0], np.ones(6, bool)))
    assert out["restricted_loss"]["all"] > 0
    assert out["controls"]["restricted_loss"]["all"]["median"] is None


def test_a_task_without_waves():
    config = Config(task="x2xyy2", p=7, n_heads=2, d_model=8, d_mlp=10, dtype="float64")
    m = measures.all(config, params_of(config), measures.split_of(config, 0.4, 0), fourier.mask_of([2], 7))
    out = measures.to_json(config, m)
    assert out["waves"] is None
    assert out["restricted_loss"]["all"] is None
    assert out["alpha"] == {"2": None}
    assert out["loss"]["all"] > 0
    assert out["ablation_loss"]["keep_key_blocks"] > 0
    assert out["W_L_residual"] > 0


def test_a_diverged_network_has_no_keys_and_is_plain_json(three):
    params, splits = three
    m = measures.all(TINY, jax.tree.map(lambda x: x * np.nan, params[0]), splits[0])
    out = measures.to_json(TINY, m)
    assert out["no_keys"]
    assert out["loss"]["all"] is None
    json.dumps(out, allow_nan=False)


def test_what_dead_neurons_read_out_is_unknown():
    """They write exactly nothing: not the rounding noise of a difference between logits."""
    config = Config(p=13, d_model=16, n_heads=2)
    params = make_model(config, modular_task(config)).init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]
    params["blocks_0"]["mlp"]["b_in"] = params["blocks_0"]["mlp"]["b_in"] - 100
    out = measures.all(config, params, measures.split_of(config, 0.3, 0), None, 0, 0)
    assert out["neurons_never_active"] == config.mlp_width
    assert np.isnan(out["mlp_readout_fve"]).all()
