"""The Fourier analysis against closed forms, np.fft and explicit vectors over all pairs.

The dtype is float64 unless a test says otherwise. A tolerance of 1e-12 allows some thousands of roundings of numbers of
order 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrok.config import BadInput
from jaxgrok.measures import fourier
from jaxgrok.tasks import ModularTask
from tests.reference import analysis

MODULI = (2, 3, 4, 9, 12, 59, 114)  # odd and even, prime and not
SMALL = (2, 3, 4, 6, 9)
SIGNS = {"add": 1, "subtract": -1}


def assert_tight(actual, desired):
    np.testing.assert_allclose(actual, desired, rtol=1e-12, atol=1e-12)


def noise(*shape, seed: int | tuple[int, ...] = 0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@jax.jit
def fits_of(neurons):
    return fourier.fit_neurons(fourier.neuron_blocks(neurons))


def argument(p, operation="add"):
    return fourier.wave_argument(ModularTask(operation, p))


# --- bases and transforms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", MODULI)
def test_basis_is_orthonormal_and_named_by_its_rows(p):
    F, names = analysis.basis(p)
    assert_tight(fourier.basis(p) @ fourier.basis(p).T, np.eye(p))
    assert_tight(fourier.basis(p), F)
    assert fourier.row_names(p) == names
    if p % 2 == 0:
        assert_tight(fourier.basis(p)[-1] * np.sqrt(p), (-1.0) ** np.arange(p))


@pytest.mark.parametrize("p", [0, 1])
def test_no_basis_below_two(p):
    with pytest.raises(BadInput, match="at least 2"):
        fourier.basis(p)


@pytest.mark.parametrize("p", MODULI)
def test_transform_inverts_and_keeps_the_norm(p):
    f = noise(p, p, 2)
    components = fourier.transform2(f)
    F = fourier.basis(p)
    np.testing.assert_allclose(components, np.einsum("ia,jb,abx->ijx", F, F, f, optimize=True), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose((components**2).sum(), (f**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(fourier.inverse(fourier.transform(f)), f, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("p", MODULI)
def test_frequency_energies_are_those_of_numpys_fft(p):
    f = noise(p, 3)
    power = np.abs(np.fft.fft(f, axis=0)) ** 2 / p
    k = np.arange(1, p // 2 + 1)
    both_sides = power[k] * np.where(2 * k == p, 1, 2)[:, None]
    np.testing.assert_allclose(fourier.frequency_energies(f), both_sides, rtol=1e-10)
    np.testing.assert_allclose(fourier.frequency_norms(f), np.sqrt(both_sides.sum(axis=1)), rtol=1e-10)
    np.testing.assert_allclose(fourier.frequency_norms(f), analysis.frequency_norms(np.asarray(f)), rtol=1e-12)
    # Parseval: the energies of the constant and of all frequencies add up to that of f.
    np.testing.assert_allclose(both_sides.sum() + power[0].sum(), (f**2).sum(), rtol=1e-12)
    np.testing.assert_allclose((fourier.component_norms(f) ** 2).sum(), (f**2).sum(), rtol=1e-12)


def test_the_last_frequency_is_a_candidate():
    # The authors' loop stops one short of it (spec: MEASURES.md).
    for p in (113, 12):
        k = p // 2
        wave = jnp.cos(2 * jnp.pi * k * jnp.arange(p, dtype=float) / p)
        assert int(fourier.frequency_norms(wave[:, None]).argmax()) + 1 == k


def test_gini_closed_forms():
    assert float(fourier.gini(jnp.zeros(7))) == 0
    assert float(fourier.gini(jnp.ones(7))) == pytest.approx(0, abs=1e-15)
    assert float(fourier.gini(jnp.zeros(7).at[3].set(5.0))) == pytest.approx(6 / 7)
    assert float(fourier.gini(jnp.array([3.0, 1.0, 2.0]))) == pytest.approx(2 / 9)
    x = np.abs(noise(40))
    pairs = np.abs(x[:, None] - x).sum() / (2 * 40 * x.sum())  # the definition: the mean absolute difference
    assert float(fourier.gini(jnp.asarray(x))) == pytest.approx(pairs, rel=1e-12)


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", SMALL)
def test_masks_and_rows(p):
    for k in range(1, p // 2 + 1):
        mask = fourier.mask_of([k], p)
        assert list(np.flatnonzero(fourier.rows_of(mask, p))) == analysis.rows_of(k, p)
    with pytest.raises(BadInput, match="frequency"):
        fourier.mask_of([p // 2 + 1], p)
    with pytest.raises(BadInput, match="frequency"):
        fourier.mask_of([0], p)


def test_random_sets_have_the_size_and_avoid_what_is_not_allowed():
    allowed = jnp.asarray(fourier.mask_of(range(4, 21), 41))
    draw = jax.jit(fourier.random_sets, static_argnums=3)
    sets = draw(jax.random.key(0), allowed, 5, 1000)
    assert (sets.sum(axis=1) == 5).all()
    assert not (sets & ~allowed[None]).any()
    # 1,000 draws of 5 from 17 give each frequency 294 times, with standard deviation 14.4.
    counts = np.asarray(sets.sum(axis=0))[3:]
    assert (np.abs(counts - 294) < 5 * 14.4).all()
    assert not draw(jax.random.key(0), allowed, 18, 3).any()
    assert not draw(jax.random.key(0), allowed, 0, 3).any()


# --- blocks and neurons -----------------------------------------------------------------------------------------------


def blocks_of(components):
    """Each frequency's block of all 2D components, without const x const. For even p, k = p/2 has no sine."""
    p = len(components)
    padded = np.zeros((p + 1, p + 1, *components.shape[2:]))
    padded[:p, :p] = components
    blocks = np.stack([padded[np.ix_([0, 2 * k - 1, 2 * k], [0, 2 * k - 1, 2 * k])] for k in range(1, p // 2 + 1)])
    blocks[:, 0, 0] = 0
    return blocks


@pytest.mark.parametrize("p", SMALL)
def test_blocks_are_the_projections_on_their_directions(p):
    f = noise(p, p, 3)
    blocks = fourier.neuron_blocks(f).blocks
    flat = np.asarray(f).reshape(p * p, 3)
    for k in range(1, p // 2 + 1):
        directions = analysis.block_directions(k, p)
        only_k = jnp.where(jnp.arange(1, p // 2 + 1)[:, None, None, None] == k, blocks, 0)
        projected = analysis.project(flat, directions).reshape(f.shape)
        assert_tight(fourier.from_blocks(only_k, p), projected)
        np.testing.assert_allclose(
            (blocks[k - 1] ** 2).sum(axis=(0, 1)), ((directions @ flat) ** 2).sum(axis=0), rtol=1e-11
        )


@pytest.mark.parametrize(("p", "at_once"), [(2, 1), (3, 1000), (12, 1), (12, 40), (12, 200), (59, 500), (59, 3000)])
def test_neuron_blocks_a_few_columns_at_a_time_are_those_of_all_components(p, at_once, monkeypatch):
    f = noise(p, p, 4)
    monkeypatch.setattr(fourier, "NUMBERS_AT_ONCE", at_once)
    of, components = fourier.neuron_blocks(f), fourier.transform2(f)
    assert_tight(of.blocks, blocks_of(components))
    assert_tight(of.mean, f.mean(axis=(0, 1)))
    np.testing.assert_allclose(of.energy, ((f - f.mean(axis=(0, 1), keepdims=True)) ** 2).sum(axis=(0, 1)), rtol=1e-11)


@pytest.mark.parametrize("p", [5, 6, 9, 12, 59])
def test_a_planted_neuron_gives_back_its_frequency(p):
    a, b = np.indices((p, p))
    ks = np.arange(1, p // 2 + 1)
    w = 2 * np.pi * ks / p
    one = 3 + np.cos(w * a[..., None]) + 2 * np.cos(w * b[..., None] + 1) - 0.5 * np.cos(w * (a - b)[..., None] + 2)
    fits = fits_of(one)
    np.testing.assert_array_equal(fits.index + 1, ks)
    np.testing.assert_allclose(fits.fve, 1, rtol=1e-12)
    assert (fourier.cluster_sizes(fits, len(ks)) == 1).all()
    if len(ks) > 2:
        # Two frequencies below p/2 with energies 4 : 1. Their product has no energy in any block.
        first, second = np.cos(w[0] * a), np.cos(w[1] * b)
        mixed = np.stack([2 * first + second, first * second], axis=2)
        fits = fits_of(mixed)
        assert int(fits.index[0]) == 0
        np.testing.assert_allclose(fits.fve, [0.8, 0], atol=1e-12)
        assert not fourier.cluster_sizes(fits, len(ks)).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constant_and_dead_neurons_explain_nothing(dtype):
    f = jnp.stack([jnp.zeros((59, 59)), jnp.full((59, 59), 0.7), jnp.full((59, 59), -1e3)], axis=2).astype(dtype)
    fits = fits_of(f)
    np.testing.assert_array_equal(fits.fve, 0)


@pytest.mark.parametrize("p", [9, 12])
def test_fits_agree_with_the_slow_ones(p):
    f = np.asarray(noise(p, p, 6)) + np.cos(2 * np.pi * np.indices((p, p))[0] / p)[..., None]
    best, fve, _ = analysis.neuron_fits(f.reshape(p * p, 6), p)
    fits = fits_of(f)
    np.testing.assert_array_equal(fits.index + 1, best)
    np.testing.assert_allclose(fits.fve, fve, rtol=1e-11)


# --- the waves of a task ----------------------------------------------------------------------------------------------


def project(f, s, keys):
    return fourier.keep_frequencies(fourier.average_over_levels(f, s), keys)[s]


@pytest.mark.parametrize("operation", ["add", "subtract"])
@pytest.mark.parametrize("p", SMALL)
def test_the_frequencies_of_level_averages_are_the_projection_on_sum_directions(p, operation):
    f, s = noise(p, p, 3), argument(p, operation)
    keys = fourier.mask_of([1, p // 2], p)
    vectors = [analysis.sum_directions(k, p, SIGNS[operation]) for k in fourier.frequencies_of(keys)]
    directions = np.concatenate(vectors)
    assert_tight(directions @ directions.T, np.eye(len(directions)))
    explicit = analysis.project(np.asarray(f).reshape(p * p, 3), directions).reshape(f.shape)
    projected = project(f, s, keys)
    assert_tight(projected, explicit)
    assert_tight(project(projected, s, keys), projected)


@pytest.mark.parametrize("operation", ["x2xyy2", "random"])
def test_other_tasks_have_no_waves(operation):
    assert not fourier.has_waves(ModularTask(operation, 7))
    with pytest.raises(BadInput, match=f"{operation}.*add subtract"):
        argument(7, operation)


def test_wave_arguments_are_the_answers():
    for operation in ("add", "subtract"):
        task = ModularTask(operation, 12)
        np.testing.assert_array_equal(fourier.wave_argument(task).ravel(), task.labels(0))


# --- keys -------------------------------------------------------------------------------------------------------------


def test_the_three_rules_and_the_key_set():
    # Frequency 1 stands out. 2 reaches max/4 = 2 and has neurons. 3 reaches it and has none. 4 has neurons but does not
    # reach it. The other six have norm 1. The median is 1, so a norm of 3 stands out.
    W_L = jnp.ones(10).at[:4].set(jnp.array([8.0, 2.0, 2.9, 1.9]))
    clusters = jnp.zeros(10, int).at[jnp.array([1, 3])].set(5)
    rules = fourier.key_frequencies(W_L, jnp.ones(10).at[0].set(4.001), clusters)
    assert [list(np.flatnonzero(mask) + 1) for mask in rules] == [[1, 2, 3], [1], [2, 4], [1, 2]]
    at_three = fourier.key_frequencies(W_L.at[2].set(3.0), jnp.ones(10), clusters)
    assert list(np.flatnonzero(at_three.keys) + 1) == [1, 2, 3]


def test_a_network_that_uses_every_frequency_has_them_all():
    rules = fourier.key_frequencies(jnp.ones(56), jnp.ones(56), jnp.full(56, 4))
    assert rules.keys.all()


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nothing_and_not_a_number_have_no_keys(value):
    rules = fourier.key_frequencies(jnp.full(9, value), jnp.full(9, value), jnp.zeros(9, int))
    assert not jnp.stack(rules).any()


@pytest.mark.parametrize("p", [58, 113])
def test_noise_has_no_key(p):
    # The norms of noise over 128 columns differ by some per cent, so the `W_L` rule holds nearly everywhere and nothing
    # stands out.
    for seed in range(5):
        W_L, W_E, neurons = (noise(*shape, seed=(seed, i)) for i, shape in enumerate([(p, 128), (p, 64), (p, p, 20)]))
        clusters = fourier.cluster_sizes(fits_of(jax.nn.relu(neurons)), p // 2)
        rules = fourier.key_frequencies(fourier.frequency_norms(W_L), fourier.frequency_norms(W_E), clusters)
        assert rules.W_L.mean() > 0.9
        assert not rules.keys.any()


def test_jit_and_vmap_give_the_same():
    f = noise(3, 12, 12, 4)

    def both(f):
        of = fourier.neuron_blocks(f)
        fits = fourier.fit_neurons(of)
        return of, fits, project(f, argument(12), fourier.mask_of([2], 12))

    mapped, single = jax.jit(jax.vmap(both))(f), jax.tree.map(lambda *x: jnp.stack(x), *map(both, f))
    jax.tree.map(lambda x, y: assert_tight(x, y), mapped, single)
