"""Which irreducible representations of a group a network uses: the analogue of key frequencies for tasks on groups.

    measured = representations.scores(config, params, is_train)

Functions on a group of G elements are a sum of one space for each irreducible representation; these spaces are the
waves of a group. The shares of W_E, W_U and W_L in them say which ones the network has learned (Chughtai et al. 2023,
"A toy model of universality"). Their networks answer xy by logits that are characters of x y c^-1: the shares of the
logits say how far that holds.

The spaces follow from the table of the group alone: they are the eigenspaces of sums over conjugacy classes. A
representation and its complex conjugate share one real space.

Letters in shapes: G elements, I irreducible representations, K conjugacy classes, D residual, C classes of the output.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxgrok.config import BadInput, Config
from jaxgrok.measures.all_pairs import over_splits
from jaxgrok.nets.loss import cross_entropy, is_correct
from jaxgrok.nets.model import make_model, unembedding
from jaxgrok.nets.precision import at_precision
from jaxgrok.task_names import group_of
from jaxgrok.tasks import make_task
from jaxgrok.tasks.groups import GroupTask, Table, identity_of, inverses, table_of

SCHEMA = 1  # the version of what `scores` returns: see `circuits.SCHEMA`
SHARES = ("W_E_share", "W_U_share", "W_L_share", "logit_share")  # each [I]
SAME = 1e-9  # eigenvalues that differ by a smaller share of the largest are one, and values of a projector are equal


class Irreps(NamedTuple):
    """The irreducible representations of a group, the trivial one first, then by dimension.

    names: the dimension, and a letter where several have it (1a, 1b, 4a); 1+1 for two that are complex conjugates.
    dimension: of each. size: the share of all functions on the group that it spans, which is the share of random
    weights. class_of: the conjugacy class of x y^-1. projection: how much of each class its projector holds: the matrix
    projection[class_of] projects. waves: its orthonormal class functions, times the root of the class sizes.
    """

    names: tuple[str, ...]
    dimension: Int[np.ndarray, "I"]
    size: Float[np.ndarray, "I"]
    class_of: Int[np.ndarray, "G G"]
    projection: Float[np.ndarray, "I K"]
    waves: tuple[Float[np.ndarray, "m K"], ...]


def classes_of(table: Table) -> Int[np.ndarray, "G"]:
    """The number of each element's conjugacy class, counted in the order of their first elements."""
    conjugates = table[table, inverses(table)[:, None]]  # x y x^-1, [x, y]
    return np.unique(conjugates.min(axis=0), return_inverse=True)[1]


@functools.lru_cache(maxsize=8)
def irreps(family: str, n: int) -> Irreps:
    """The irreducible representations of a group (`tasks.groups.table_of`)."""
    table = table_of(family, n)
    G, inverse, of_class = len(table), inverses(table), classes_of(table)
    sizes = np.bincount(of_class)
    K, first = len(sizes), np.array([np.flatnonzero(of_class == k)[0] for k in range(len(sizes))])
    # One number for each class and its inverses', so that the operator below is symmetric and its eigenvalues real.
    weight = np.random.default_rng(0).normal(size=K)[of_class]
    weight = (weight + weight[inverse]) / 2
    # Multiplication by sum_x weight(x) x, on sums over classes: the coefficient of class k in its product with class j.
    sums = np.stack([np.bincount(of_class[table[inverse, z]], weight, minlength=K) for z in first])
    root = np.sqrt(sizes)
    values, vectors = np.linalg.eigh(root[:, None] * sums / root)
    starts = np.flatnonzero(np.diff(values, prepend=-np.inf) > SAME * np.abs(values).max())
    identity = of_class[identity_of(table)]
    found = []
    for columns in np.split(np.arange(K), starts[1:]):
        waves = vectors[:, columns].T
        projection = waves[:, identity] @ waves / root  # that of the identity, which is the sum of all projectors
        size = projection[identity]
        dimension = round(float(np.sqrt(size * G / len(columns))))
        found.append((dimension, len(columns), size, projection, waves))
    # The trivial one has the same value everywhere; of equal dimension, larger characters come first.
    found.sort(key=lambda f: (np.ptp(f[3]) > SAME, f[0], f[1], *(-np.round(f[3] / f[2], 6))))
    dimension, copies, size, projection, waves = (list(column) for column in zip(*found))
    return Irreps(
        _names(list(zip(dimension, copies))),
        np.array(dimension),
        np.array(size),
        of_class[table[:, inverse]],
        np.array(projection),
        tuple(waves),
    )


def _names(kinds: list[tuple[int, int]]) -> tuple[str, ...]:
    """kinds: (dimension, how many share one real space)."""
    names, seen = [], dict.fromkeys(kinds, 0)
    for kind in kinds:
        text = "+".join([str(kind[0])] * kind[1])
        names.append(text + _letters(seen[kind]) if kinds.count(kind) > 1 else text)
        seen[kind] += 1
    return tuple(names)


def _letters(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letter = chr(ord("a") + number % 26)
    return letter if number < 26 else _letters(number // 26 - 1) + letter


@at_precision("highest")
def shares(W: Float[Array | np.ndarray, "G A"], of: Irreps) -> Float[Array, "I"]:
    """The share of a matrix's squares in the space of each representation. They add up to 1."""
    W = jnp.asarray(W)
    # <W, P W> for the projectors P: the products of rows, summed by the class of x y^-1.
    by_class = jnp.zeros(of.projection.shape[1], W.dtype).at[of.class_of].add(W @ W.T)
    energy = jnp.maximum(jnp.asarray(of.projection, W.dtype) @ by_class, 0)  # rounding may make none of it negative
    return energy / energy.sum()


@functools.partial(jax.jit, static_argnums=0)
@at_precision("highest")
def scores(config: Config, params: dict, is_train: Bool[Array | np.ndarray, "G G"] | None = None) -> dict[str, Any]:
    """What a network on a group has learned. Compiled once per config.

    is_train: which pairs are trained on; None if that is unknown, and losses are then over all pairs alone.

    `W_E_share`, `W_U_share` and `W_L_share` [I] are of the weights of the elements, without "="; W_L = W_out W_U is
    that of the last block, None without an MLP. `logit_share` [I] is the fraction of the logits' variance that the
    characters of x y c^-1 explain, c the answer; NaN for another operation than xy. `loss` and `accuracies` are over
    the classes of the elements.

    Raises BadInput for another task.
    """
    name, task = group_of(config.task), make_task(config)
    if name is None or not isinstance(task, GroupTask):
        raise BadInput("task", config.task, "a task on a group, such as s5")
    of, G, params = irreps(name.family, name.n), len(task.table), jax.tree.map(jnp.asarray, params)
    W_U = unembedding(params)[:, :G]
    block = params[f"blocks_{config.n_layers - 1}"]
    W_L = (block["mlp"]["W_out"] @ W_U).T if "mlp" in block else None
    per_pair, of_class, total = _on_all_pairs(config, task, params, of)
    losses, right = per_pair
    if is_train is None:
        loss, accuracies = ({"all": x.mean(axis=1).mean()} for x in (losses, right))
    else:
        loss, accuracies = (over_splits(x, jnp.asarray(is_train)) for x in (losses, right))
    logit_share = _explained(of, of_class, total) if task.operation == "xy" else jnp.full(len(of.size), jnp.nan)
    return {
        "loss": loss,
        "accuracies": accuracies,
        "W_E_share": shares(params["embed"]["W_E"][:G], of),
        "W_U_share": shares(W_U.T, of),
        "W_L_share": None if W_L is None else shares(W_L, of),
        "logit_share": logit_share.astype(losses.dtype),
    }


def _on_all_pairs(config: Config, task: GroupTask, params: dict, of: Irreps) -> Any:
    """((the loss and whether the answer is right, for each pair), the sum of the logits by the class of x y c^-1,
    (their sum, their sum of squares)). One x at a time, so that memory does not grow with G^3."""
    G, model = len(task.table), make_model(config, task)
    prepared, tokens = model.prepare(params, G * G), task.all_examples(0).tokens.reshape(G, G, -1)
    table, class_of = jnp.asarray(task.table), jnp.asarray(of.class_of)

    def of_x(x):
        at, answers, products = x
        logits = model.forward(prepared, at)[0][:, 0, :G]
        by_class = jnp.zeros(of.projection.shape[1], logits.dtype).at[class_of[products]].add(logits)
        right = is_correct(logits, answers).astype(logits.dtype)
        return (cross_entropy(logits, answers), right), by_class, (logits.sum(), (logits**2).sum())

    per_pair, by_class, totals = jax.lax.map(of_x, (jnp.asarray(tokens), jnp.asarray(task.answers), table))
    return per_pair, by_class.sum(axis=0), jax.tree.map(lambda x: x.sum(), totals)


def _explained(of: Irreps, by_class: Float[Array, "K"], totals: tuple[Array, Array]) -> Float[Array, "I"]:
    """The fraction of the variance of G^3 logits that each representation's characters explain."""
    G, sizes = len(of.class_of), np.bincount(of.class_of[:, 0])
    total, squares = totals
    mean = total / G**3
    variance = squares / G**3 - mean**2
    # The mean over a class less the overall mean, times the root of the class's share of all elements.
    root = jnp.asarray(np.sqrt(sizes / G), by_class.dtype)
    centred = (by_class / jnp.asarray(sizes * G**2, by_class.dtype) - mean) * root
    return jnp.stack([((jnp.asarray(waves, centred.dtype) @ centred) ** 2).sum() for waves in of.waves]) / variance
