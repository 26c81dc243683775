"""Real Fourier analysis modulo p: bases, transforms, the waves of a task, and the rules that make a frequency a key.

All functions are pure and their shapes are static. They read p from a shape. Their products are in full precision on
every device. A set of frequencies is a boolean mask [K] over k = 1 .. K = p // 2, and k = p // 2 is included. The
angular frequency of k is w_k = 2 pi k / p. The basis has orthonormal rows: the constant, then cos and sin of each k.
For even p the last row alternates +1 and -1, and it is the only row of k = p/2 (spec: MEASURES.md).

Shapes: P residue, F Fourier row (there are as many as residues), K frequency, M neurons. Axes written `...` are carried
along.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxgrok.config import BadInput
from jaxgrok.measures.columns import Parts, columns_of, in_columns
from jaxgrok.nets.precision import at_precision
from jaxgrok.tasks import ModularTask
from jaxgrok.tasks.modular import MULTIPLICATIVE

# The argument of the waves of each task: its name, and its value for a pair of places in the task's group, of P numbers
# (`tasks.modular`). Each value modulo P must belong to P pairs. The other operations have no such argument.
WAVE_ARGUMENTS = {
    "add": ("a + b", lambda a, b: a + b),
    "subtract": ("a - b", lambda a, b: a - b),
    "multiply": ("log a + log b", lambda a, b: a + b),
    "x/y": ("log a - log b", lambda a, b: a - b),
}
RULE_SHARE = 1 / 4  # the rules `W_L` and `W_E`: the least norm that counts, as a share of the largest
STANDS_OUT = 3  # a frequency stands out if its norm is at least this many times the median norm
CLUSTERED = 0.85  # a neuron is in a cluster if its best frequency explains more than this share of its centred energy
NUMBERS_AT_ONCE = 1 << 19  # activations whose components are computed at once
CONSTANT_ROUNDINGS = 8  # a neuron is constant if its energy is no more than this many roundings of its mean could leave


# --- bases and transforms ---------------------------------------------------------------------------------------------


def n_frequencies(p: int) -> int:
    """K = p // 2. Raises BadInput if p is below 2, where there is no frequency."""
    if p < 2:
        raise BadInput("p", p, "a whole number, at least 2")
    return p // 2


def frequency_of_row(p: int) -> Int[np.ndarray, "F"]:
    """The frequency of each basis row: 0, 1, 1, 2, 2, ..."""
    return (np.arange(p) + 1) // 2


def row_names(p: int) -> list[str]:
    """The names of the basis rows: `const`, `cos 1`, `sin 1`, ..."""
    return ["const", *(f"{'cos' if row % 2 else 'sin'} {k}" for row, k in enumerate(frequency_of_row(p)) if row)]


def basis(p: int) -> Float[np.ndarray, "F P"]:
    """The orthonormal 1D basis in float64. Raises BadInput if p is below 2."""
    n_frequencies(p)
    row, x = np.arange(p)[:, None], np.arange(p)
    # Reducing modulo p first keeps the phase exact, however large p is.
    angle = 2 * np.pi / p * (frequency_of_row(p)[:, None] * x % p)
    waves = np.where(row % 2, np.cos(angle), np.where(row == 0, 1.0, np.sin(angle)))
    return waves / np.linalg.norm(waves, axis=1, keepdims=True)


def _basis_like(x: Float[Array | np.ndarray, "P ..."]) -> Float[Array, "F P"]:
    return jnp.asarray(basis(x.shape[0]), x.dtype)


@at_precision("highest")
def transform(f: Float[Array | np.ndarray, "P ..."]) -> Float[Array, "F ..."]:
    """The Fourier components of f along its first axis."""
    return jnp.tensordot(_basis_like(f), f, axes=1)


@at_precision("highest")
def inverse(components: Float[Array | np.ndarray, "F ..."]) -> Float[Array, "P ..."]:
    """The function with these Fourier components: the inverse of `transform`."""
    return jnp.tensordot(_basis_like(components).T, components, axes=1)


def transform2(f: Float[Array | np.ndarray, "P P ..."]) -> Float[Array, "F F ..."]:
    """The 2D components of f along its first two axes: f_hat[i, j] = sum_ab F[i, a] F[j, b] f[a, b]."""
    return jax.vmap(transform)(transform(f))


# --- frequencies and masks --------------------------------------------------------------------------------------------


def mask_of(frequencies: Iterable[int], p: int) -> Bool[np.ndarray, "K"]:
    """The mask of a set of frequencies. Raises BadInput if one of them is outside 1 .. p // 2."""
    K = n_frequencies(p)
    mask = np.zeros(K, bool)
    for k in frequencies:
        if not 1 <= k <= K:
            raise BadInput("frequency", k, f"1 to {K}, for p = {p}")
        mask[k - 1] = True
    return mask


def frequencies_of(mask: Bool[Array | np.ndarray, "K"]) -> list[int]:
    """The frequencies k in a mask, in order: the inverse of `mask_of`."""
    return [int(i) + 1 for i in np.flatnonzero(mask)]


def rows_of(mask: Bool[Array | np.ndarray, "K"], p: int) -> Bool[Array, "F"]:
    """Whether the frequency of each basis row is in the mask. The constant never is."""
    return jnp.concatenate([jnp.zeros(1, bool), jnp.asarray(mask)[frequency_of_row(p)[1:] - 1]])


def by_frequency(rows: Float[Array | np.ndarray, "F ..."]) -> Float[Array, "K 2 ..."]:
    """The rows as pairs (cos, sin), without the constant. For even p the sine of k = p/2 is zero."""
    p = rows.shape[0]
    if p % 2 == 0:
        rows = jnp.concatenate([rows, jnp.zeros_like(rows[:1])])
    return jnp.asarray(rows)[1:].reshape(n_frequencies(p), 2, *rows.shape[1:])


def frequency_energies(f: Float[Array | np.ndarray, "P ..."]) -> Float[Array, "K ..."]:
    """The energy of f at each frequency along its first axis: the squares of its cos and sin components, added."""
    return (by_frequency(transform(f)) ** 2).sum(axis=1)


def frequency_norms(matrix: Float[Array | np.ndarray, "P ..."]) -> Float[Array, "K"]:
    """The L2 norm of the matrix at each frequency, over cos, sin and all other axes."""
    energies = frequency_energies(matrix)
    return jnp.sqrt(energies.reshape(len(energies), -1).sum(axis=1))


def component_norms(matrix: Float[Array | np.ndarray, "P ..."]) -> Float[Array, "F"]:
    """The L2 norm of each Fourier component of the matrix; cos and sin are separate."""
    return jnp.linalg.norm(transform(matrix).reshape(len(matrix), -1), axis=1)


def gini(x: Float[Array, "n"]) -> Float[Array, ""]:
    """The Gini coefficient of x >= 0: 0 if all are equal or zero, 1 - 1/n if one has everything."""
    n = len(x)
    rank = jnp.arange(1, n + 1, dtype=x.dtype)
    total = x.sum()
    of_something = 2 * (rank * jnp.sort(x)).sum() / (n * total) - (n + 1) / n
    return jnp.where(total == 0, 0, of_something)


# --- 3x3 blocks {const, cos_k, sin_k}^2 -------------------------------------------------------------------------------


def block_waves(p: int) -> Float[np.ndarray, "K 3 P"]:
    """The 1D basis rows const, cos_k, sin_k of each frequency, in float64. For even p the sine of k = p/2 is zero."""
    k = np.arange(1, n_frequencies(p) + 1)
    rows = np.stack([np.zeros_like(k), 2 * k - 1, 2 * k], axis=1)
    return np.concatenate([basis(p), np.zeros((1, p))])[rows]


@at_precision("highest")
def from_blocks(found: Float[Array, "K 3 3 C"], p: int) -> Float[Array, "P P C"]:
    """The function whose 2D components are these blocks, and zero elsewhere.

    The inner transform is cheap, because it needs only the rows const, cos_k and sin_k of each frequency.
    """
    K, C = found.shape[0], found.shape[-1]
    waves = jnp.asarray(block_waves(p), found.dtype)
    inner = jnp.einsum("kijc,kjb->kibc", found, waves)
    rows = jnp.concatenate([inner[:, 0].sum(axis=0)[None], inner[:, 1:].reshape(2 * K, p, C)])
    outer = jnp.concatenate([waves[0, :1], waves[:, 1:].reshape(2 * K, p)])
    return jnp.tensordot(outer.T, rows, axes=1)


class NeuronBlocks(NamedTuple):
    """The parts of the 2D components of M neurons, or of the logits of M classes, that the measures need.

    Attributes:
        blocks: the components of each frequency's block. Its entry const x const is set to zero.
        mean: the mean over all pairs.
        energy: the sum over all pairs of the squared distance from the mean.
    """

    blocks: Float[Array, "K 3 3 M"]
    mean: Float[Array, "M"]
    energy: Float[Array, "M"]


class ColumnParts(NamedTuple):
    """What `neuron_blocks` needs of a block of columns b: the components along a, and what is added up of them.

    Attributes:
        constant: the component of the constant, for each column.
        blocks: the components of cos and sin, times each frequency's three waves along b, over the new columns.
        energy: the squares of the same components, over the new columns.
    """

    constant: Float[Array, "B M"]
    blocks: Float[Array, "K 2 3 M"]
    energy: Float[Array, "M"]


@at_precision("highest")
def column_parts(neurons: Float[Array, "P B M"], columns: Int[Array, "B"], is_new: Bool[Array, "B"]) -> ColumnParts:
    """The parts of a block of columns (see `columns.in_columns`)."""
    half = transform(neurons)
    rows = by_frequency(half)
    waves = jnp.where(is_new, jnp.asarray(block_waves(len(neurons)), neurons.dtype)[..., columns], 0)
    # Three sums instead of one product per frequency, for which XLA transposes everything on a CPU.
    blocks = jnp.stack([(waves[:, None, j, :, None] * rows).sum(axis=2) for j in range(3)], axis=2)
    energy = jnp.where(is_new[None, :, None], half[1:] ** 2, 0).sum(axis=1).sum(axis=0)
    return ColumnParts(half[0], blocks, energy)


@at_precision("highest")
def blocks_of_parts(parts: ColumnParts) -> NeuronBlocks:
    """The blocks, from the parts of all columns."""
    constant = parts.constant
    p = len(constant)
    mean = constant.mean(axis=0)
    top = jnp.tensordot(jnp.asarray(block_waves(p), constant.dtype), constant, axes=1).at[:, 0].set(0)
    energy = parts.energy + ((constant - mean[None]) ** 2).sum(axis=0)
    return NeuronBlocks(jnp.concatenate([top[:, None], parts.blocks], axis=1), mean / math.sqrt(p), energy)


@at_precision("highest")
def neuron_blocks(neurons: Float[Array | np.ndarray, "P P M"]) -> NeuronBlocks:
    """The blocks of activations, or of logits, over all pairs.

    Of the 2D components it computes only those in a block: along b each row needs three waves. It takes a few columns
    at a time, whose components stay in a CPU's cache.
    """
    P, _, M = neurons.shape

    def of_block(columns, is_new):
        constant, blocks, energy = column_parts(columns_of(jnp.asarray(neurons), columns), columns, is_new)
        return Parts((), constant, (blocks, energy))

    found = in_columns(of_block, P, NUMBERS_AT_ONCE // M)
    return blocks_of_parts(ColumnParts(found.columns, *found.sums))


class NeuronFits(NamedTuple):
    """The single frequency that explains each neuron best, and how well it does.

    Attributes:
        index: k - 1, where the block of frequency k has the most energy.
        fve: the fraction of variance explained, which is the energy of that block as a share of the centred energy.
    """

    index: Int[Array, "M"]
    fve: Float[Array, "M"]


def fit_neurons(of: NeuronBlocks) -> NeuronFits:
    """The best 3x3 block of each neuron. A neuron that is constant, up to the rounding of its dtype, has fve 0."""
    p_squared = 4 * len(of.blocks) ** 2
    energies = (of.blocks**2).sum(axis=(1, 2))
    # The transform of a constant leaves a rounding error in each of the p^2 components along the first input, in all
    # about p^3 mean^2 eps^2: less than a hundredth of this.
    eps = CONSTANT_ROUNDINGS * jnp.finfo(of.mean.dtype).eps
    rounding = p_squared * of.mean**2 * 2 * math.sqrt(p_squared) * eps**2
    varies = of.energy > rounding
    fve = jnp.where(varies, energies.max(axis=0) / jnp.where(varies, of.energy, 1), 0)
    return NeuronFits(energies.argmax(axis=0), fve)


def cluster_sizes(fits: NeuronFits, K: int) -> Int[Array, "K"]:
    """The number of neurons whose best frequency is k and explains more than CLUSTERED of their energy, for each k."""
    best = fits.index[None] == jnp.arange(K)[:, None]
    return (best & (fits.fve > CLUSTERED)[None]).sum(axis=1)


# --- the waves of a task ----------------------------------------------------------------------------------------------


def has_waves(task: ModularTask) -> bool:
    """Whether the task's answer is a function of one wave argument, as in addition and subtraction."""
    return task.operation in WAVE_ARGUMENTS and (task.is_multiplicative or task.operation not in MULTIPLICATIVE)


def wave_argument(task: ModularTask) -> Int[np.ndarray, "P P"]:
    """The argument s modulo P of the task's waves on every pair over its group, int32.

    Raises BadInput if there is none.
    """
    if not has_waves(task):
        raise BadInput("task", task.operation, f"one whose answer is a wave of a and b: {' '.join(WAVE_ARGUMENTS)}")
    P = len(task.group)
    a, b = np.divmod(np.arange(P * P, dtype=np.int32), np.int32(P))
    _, argument = WAVE_ARGUMENTS[task.operation]
    return (argument(a, b) % P).reshape(P, P)


def average_over_levels(f: Float[Array | np.ndarray, "P P ..."], s: Int[np.ndarray, "P P"]) -> Float[Array, "P ..."]:
    """The mean of f over the p pairs of each value of s. s must be concrete."""
    p = len(s)
    pairs = np.argsort(np.asarray(s), axis=None, kind="stable").reshape(p, p)
    return jnp.asarray(f).reshape(p * p, *f.shape[2:])[pairs].mean(axis=1)


def keep_frequencies(
    f: Float[Array | np.ndarray, "P ..."], mask: Bool[Array | np.ndarray, "K"]
) -> Float[Array, "P ..."]:
    """The part of f at the frequencies in the mask, without the constant.

    With f averaged over the levels of s, this is the projection P_S on the sum directions of those frequencies (spec:
    MEASURES.md): the projection is a function of s alone, so it needs no more than one 1D transform.
    """
    components = transform(f)
    keep = rows_of(mask, f.shape[0]).reshape(-1, *[1] * (f.ndim - 1))
    return inverse(jnp.where(keep, components, 0))


# --- key frequencies --------------------------------------------------------------------------------------------------


class KeyRules(NamedTuple):
    """The frequencies that satisfy each named rule, and the key set (spec: MEASURES.md, Key frequencies)."""

    W_L: Bool[Array, "K"]
    W_E: Bool[Array, "K"]
    neurons: Bool[Array, "K"]
    keys: Bool[Array, "K"]


def _prominent(norms: Float[Array, "K"]) -> Bool[Array, "K"]:
    """Whether each norm is at least max/4. None is if all are zero or one is not finite."""
    return (norms >= RULE_SHARE * norms.max()) & (norms > 0)


def key_frequencies(W_L_norms: Float[Array, "K"], W_E_norms: Float[Array, "K"], clusters: Int[Array, "K"]) -> KeyRules:
    """The rules and the keys, from the frequency norms of W_L and W_E and the cluster sizes.

    A key satisfies the `W_L` rule, and it either stands out (its norm is 3 times the median norm) or has neurons of its
    own.
    """
    by_W_L = _prominent(W_L_norms)
    by_neurons = clusters > 0
    stands_out = W_L_norms >= STANDS_OUT * jnp.median(W_L_norms)
    return KeyRules(by_W_L, _prominent(W_E_norms), by_neurons, by_W_L & (stands_out | by_neurons))


def random_sets(
    key: Key[Array, ""], allowed: Bool[Array, "K"], size: int | Int[Array, ""], draws: int
) -> Bool[Array, "draws K"]:
    """Masks of `size` frequencies each, drawn without replacement from the allowed ones.

    size may be traced. If fewer frequencies are allowed than asked for, the masks are empty.
    """
    # float32 in every dtype, so that float32 and float64 get the same sets.
    score = jax.random.uniform(key, (draws, len(allowed)), jnp.float32)
    rank = jnp.where(allowed[None], score, jnp.inf).argsort(axis=1).argsort(axis=1)
    return (rank < size) & allowed[None] & (size <= allowed.sum())
