"""Real Fourier analysis modulo p: bases, transforms, the waves of a task, and which frequencies are keys.

Pure functions of arrays with static shapes. p is read from a shape; a set of frequencies is a boolean mask [K] over
k = 1 .. K = p // 2, the last one included; w_k = 2 pi k / p. The basis has orthonormal rows: const, then cos and sin of
each k. For even p the last row alternates +1 and -1 and is all there is of k = p/2 (spec: MEASURES.md).

Shapes: P residue, F Fourier row (as many), K frequency, M neurons; trailing dimensions `...` are carried along.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrok.config import BadInput

# What the waves of a task are waves of. Its level sets must have p pairs each; other operations have no such argument.
WAVE_ARGUMENTS = {
    "add": ("a + b", lambda a, b: a + b),
    "subtract": ("a - b", lambda a, b: a - b),
}
RULE_SHARE = 1 / 4  # the rules `W_L` and `W_E`: a frequency counts from this share of the largest norm
STANDS_OUT = 3  # times the median over frequencies
CLUSTERED = 0.85  # of a neuron's centred energy, from which on it belongs to a frequency's cluster


# --- bases and transforms -----------------------------------------------------------------------------------------------


def n_frequencies(p: int) -> int:
    """K = p // 2. Raises BadInput below p = 2, where there is no frequency."""
    if p < 2:
        raise BadInput("p", p, "a whole number, at least 2")
    return p // 2


def frequency_of_row(p: int) -> np.ndarray:
    """[F] frequency of each basis row: 0, 1, 1, 2, 2, ..."""
    return (np.arange(p) + 1) // 2


def row_names(p: int) -> list[str]:
    """[F] names of the basis rows: `const`, `cos 1`, `sin 1`, ..."""
    return ["const", *(f"{'cos' if row % 2 else 'sin'} {k}" for row, k in enumerate(frequency_of_row(p)) if row)]


def basis(p: int) -> np.ndarray:
    """The 1D basis F [F, P], float64, F F^T = I. Raises BadInput for p < 2."""
    n_frequencies(p)
    row, x = np.arange(p)[:, None], np.arange(p)
    # Reduced modulo p first: the phase is then exact however large p is.
    angle = 2 * np.pi / p * (frequency_of_row(p)[:, None] * x % p)
    waves = np.where(row % 2, np.cos(angle), np.where(row == 0, 1.0, np.sin(angle)))
    return waves / np.linalg.norm(waves, axis=1, keepdims=True)


def _basis_as(x) -> jax.Array:
    return jnp.asarray(basis(x.shape[0]), x.dtype)


def transform(f):
    """F f: components [F, ...] of f [P, ...] along its first axis."""
    return jnp.tensordot(_basis_as(f), f, axes=1)


def inverse(components):
    """F^T components: [F, ...] -> [P, ...]."""
    return jnp.tensordot(_basis_as(components).T, components, axes=1)


def transform2(f):
    """f_hat[i, j] = sum_ab F[i, a] F[j, b] f[a, b]: components [F, F, ...] of f [P, P, ...]."""
    return jax.vmap(transform)(transform(f))


def inverse2(components):
    """The function [P, P, ...] with these 2D components [F, F, ...]."""
    return inverse(jax.vmap(inverse)(components))


# --- frequencies and masks ----------------------------------------------------------------------------------------------


def mask_of(frequencies, p: int) -> np.ndarray:
    """The mask [K] of a collection of frequencies. Raises BadInput for one outside 1 .. p // 2."""
    K = n_frequencies(p)
    mask = np.zeros(K, bool)
    for k in frequencies:
        if not 1 <= k <= K:
            raise BadInput("frequency", k, f"1 to {K}, for p = {p}")
        mask[k - 1] = True
    return mask


def frequencies_of(mask) -> list[int]:
    """The frequencies k of a concrete mask [K]: the inverse of mask_of."""
    return [int(i) + 1 for i in np.flatnonzero(mask)]


def rows_of(mask, p: int):
    """[F] whether each basis row belongs to the frequencies of a mask [K]; the constant never does."""
    return jnp.concatenate([jnp.zeros(1, bool), jnp.asarray(mask)[frequency_of_row(p)[1:] - 1]])


def by_frequency(rows):
    """[F, ...] -> [K, 2, ...] (cos, sin) without the constant; for even p the sine of k = p/2 is zero."""
    p = rows.shape[0]
    if p % 2 == 0:
        rows = jnp.concatenate([rows, jnp.zeros_like(rows[:1])])
    return rows[1:].reshape(n_frequencies(p), 2, *rows.shape[1:])


def frequency_energies(f):
    """[K, ...] squared norms of the components of f [P, ...] at each frequency, its cos and sin rows added."""
    return (by_frequency(transform(f)) ** 2).sum(axis=1)


def frequency_norms(matrix):
    """[K] norms of matrix [P, ...] at each frequency: L2 over the other axes, cos and sin rows in quadrature."""
    energies = frequency_energies(matrix)
    return jnp.sqrt(energies.reshape(len(energies), -1).sum(axis=1))


def component_norms(matrix):
    """[F] norms of the components of matrix [P, ...]: the constant, and each cos and sin by itself."""
    return jnp.linalg.norm(transform(matrix).reshape(len(matrix), -1), axis=1)


def gini(x):
    """Gini coefficient of x [n] >= 0: 0 where all are equal (or all zero), 1 - 1/n where one has everything."""
    n = len(x)
    rank = jnp.arange(1, n + 1, dtype=x.dtype)
    total = x.sum()
    of_something = 2 * (rank * jnp.sort(x)).sum() / (n * total) - (n + 1) / n
    return jnp.where(total == 0, 0, of_something)


# --- 3x3 blocks {const, cos_k, sin_k}^2 ---------------------------------------------------------------------------------


def _block_rows(p: int) -> np.ndarray:
    """[K, 3] basis rows of each frequency's block; the missing sine of k = p/2 points past the end."""
    k = np.arange(1, n_frequencies(p) + 1)
    return np.stack([np.zeros_like(k), 2 * k - 1, 2 * k], axis=1)


def block_waves(p: int) -> np.ndarray:
    """[K, 3, P] the 1D basis rows const, cos_k, sin_k of each frequency, float64; the missing sine of k = p/2 is zero."""
    return np.concatenate([basis(p), np.zeros((1, p))])[_block_rows(p)]


def blocks(components):
    """[K, 3, 3, ...] each frequency's block of the 2D components [F, F, ...], with zero for const x const."""
    rows = _block_rows(components.shape[0])
    found = components.at[rows[:, :, None], rows[:, None, :]].get(mode="fill", fill_value=0)
    return found.at[:, 0, 0].set(0)


def from_blocks(found, p: int):
    """The function [P, P, C] whose components are these blocks [K, 3, 3, C], and zero elsewhere.

    Only the rows const, cos_k and sin_k meet, so the inner transform costs next to nothing.
    """
    K, C = found.shape[0], found.shape[-1]
    waves = jnp.asarray(block_waves(p), found.dtype)
    inner = jnp.einsum("kijc,kjb->kibc", found, waves)
    rows = jnp.concatenate([inner[:, 0].sum(axis=0)[None], inner[:, 1:].reshape(2 * K, p, C)])
    outer = jnp.concatenate([waves[0, :1], waves[:, 1:].reshape(2 * K, p)])
    return jnp.tensordot(outer.T, rows, axes=1)


class NeuronBlocks(NamedTuple):
    """What is needed of the 2D components of M neurons: blocks [K, 3, 3, M] (see `blocks`), mean over pairs [M], centred energy [M]."""

    blocks: jax.Array
    mean: jax.Array
    energy: jax.Array


def neuron_blocks(neurons) -> NeuronBlocks:
    """The blocks of activations [P, P, M] over all pairs: a row of components at a time, so that they never exist together."""
    p = neurons.shape[0]
    half, F = transform(neurons), _basis_as(neurons)
    columns = _block_rows(p)[frequency_of_row(p)[1:] - 1]

    def of_row(x):
        row, columns = x
        components = F @ row
        return components.at[columns].get(mode="fill", fill_value=0), (components**2).sum(axis=0)

    first = F @ half[0]
    others, energies = jax.lax.map(of_row, (half[1:], columns))
    constant_row = jnp.concatenate([jnp.zeros_like(first[:1]), first[1:]])
    top = jnp.concatenate([jnp.zeros_like(others[: p // 2, :1]), by_frequency(constant_row)], axis=1)
    below = by_frequency(jnp.concatenate([jnp.zeros_like(others[:1]), others]))
    energy = energies.sum(axis=0) + (constant_row**2).sum(axis=0)
    return NeuronBlocks(jnp.concatenate([top[:, None], below], axis=1), first[0] / p, energy)


class NeuronFits(NamedTuple):
    """For each neuron [M]: its best frequency's index k - 1, and the share of its centred energy in that block."""

    index: jax.Array
    fve: jax.Array


def fit_neurons(of: NeuronBlocks) -> NeuronFits:
    """The best 3x3 block of each neuron. One that is constant, to the rounding of its dtype, has explained share 0."""
    p_squared = 4 * len(of.blocks) ** 2
    energies = (of.blocks**2).sum(axis=(1, 2))
    # The transform of a constant leaves about one rounding error of it in each of the 2p components of one input alone.
    rounding = p_squared * of.mean**2 * 2 * math.sqrt(p_squared) * (8 * jnp.finfo(of.mean.dtype).eps) ** 2
    varies = of.energy > rounding
    fve = jnp.where(varies, energies.max(axis=0) / jnp.where(varies, of.energy, 1), 0)
    return NeuronFits(energies.argmax(axis=0), fve)


def cluster_sizes(fits: NeuronFits, K: int):
    """[K] neurons whose best frequency is k and explains more than CLUSTERED of them."""
    return ((fits.index == jnp.arange(K)[:, None]) & (fits.fve > CLUSTERED)).sum(axis=1)


# --- the waves of a task ------------------------------------------------------------------------------------------------


def has_waves(task) -> bool:
    """Whether the answers of a ModularTask are waves of one argument: addition and subtraction."""
    return task.operation in WAVE_ARGUMENTS


def wave_argument(task) -> np.ndarray:
    """s [P, P] int32, the argument modulo p of a task's waves on every pair. Raises BadInput where the task has none."""
    if not has_waves(task):
        raise BadInput("task", task.operation, f"one whose answer is a wave of a and b: {' '.join(WAVE_ARGUMENTS)}")
    a, b = np.divmod(np.arange(task.p**2, dtype=np.int32), np.int32(task.p))
    _, argument = WAVE_ARGUMENTS[task.operation]
    return (argument(a, b) % task.p).reshape(task.p, task.p)


def sum_directions(s, dtype=None):
    """[F - 1, P, P] unit vectors over the pairs: cos and sin of w_k s for the rows 1, 2, ... of the basis. s [P, P] (wave_argument).

    For s = a + b these are (cos_k x cos_k - sin_k x sin_k)/sqrt2 and (sin_k x cos_k + cos_k x sin_k)/sqrt2.
    """
    p = len(s)
    return jnp.asarray((basis(p)[1:] / np.sqrt(p))[:, np.asarray(s)], dtype)


def average_over_levels(f, s):
    """[P, ...] mean of f [P, P, ...] over the p pairs of each value of s [P, P]; s is concrete."""
    p = len(s)
    pairs = np.argsort(np.asarray(s), axis=None, kind="stable").reshape(p, p)
    return f.reshape(p * p, *f.shape[2:])[pairs].mean(axis=1)


def keep_frequencies(f, mask):
    """[P, ...] the part of f [P, ...] at the frequencies of a mask [K], without the constant."""
    components = transform(f)
    keep = rows_of(mask, f.shape[0]).reshape(-1, *[1] * (f.ndim - 1))
    return inverse(jnp.where(keep, components, 0))


def project(f, s, mask):
    """P_S f [P, P, ...]: the projection of f [P, P, ...] on the sum directions of the frequencies of a mask [K].

    It is a function of s alone, so the level sets are averaged first and one 1D transform does.
    """
    return keep_frequencies(average_over_levels(f, s), mask)[np.asarray(s)]


def explained_variance(f, fit):
    """1 - RSS/TSS of a fit to f, both of one shape; TSS about f's mean."""
    return 1 - ((f - fit) ** 2).sum() / ((f - f.mean()) ** 2).sum()


# --- key frequencies ----------------------------------------------------------------------------------------------------


class KeyRules(NamedTuple):
    """The three named rules and the key set, masks [K] each (spec: MEASURES.md, Key frequencies)."""

    W_L: jax.Array
    W_E: jax.Array
    neurons: jax.Array
    keys: jax.Array


def prominent(norms):
    """[K] norm >= max/4; none where all are zero or not finite."""
    return (norms >= RULE_SHARE * norms.max()) & (norms > 0)


def key_frequencies(W_L_norms, W_E_norms, clusters) -> KeyRules:
    """The rules and keys from frequency norms [K] of W_L and W_E and cluster sizes [K].

    A key satisfies the `W_L` rule, and stands out (3 times the median norm) or has neurons of its own.
    """
    by_W_L = prominent(W_L_norms)
    by_neurons = clusters > 0
    stands_out = W_L_norms >= STANDS_OUT * jnp.median(W_L_norms)
    return KeyRules(by_W_L, prominent(W_E_norms), by_neurons, by_W_L & (stands_out | by_neurons))


def random_sets(key, allowed, size, draws: int):
    """[draws, K] masks of `size` frequencies each, drawn without replacement among `allowed` [K].

    size may be traced. Where fewer are allowed than asked for, the masks are empty.
    """
    # Drawn in float32 in every dtype, so that controls are the same sets in float32 and float64.
    score = jax.random.uniform(key, (draws, len(allowed)), jnp.float32)
    rank = jnp.where(allowed, score, jnp.inf).argsort(axis=1).argsort(axis=1)
    return (rank < size) & allowed & (size <= allowed.sum())
