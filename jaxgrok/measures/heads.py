"""The attention of each head of an induction network, and the network without each head (spec: EXPERIMENTS.md A2).

    config = make_config("induction")
    m = heads.scores(config, params, *heads.sequences(config))
    m["induction"]                                              # [L, H]

Two heads together can predict a repeated token. Take the second 7 in the worked example of tasks/induction.py. A head
of an earlier layer attends to the position before, so it writes into each position which token stands before it
(`previous_token`). A head of a later layer looks for "7 stands before me", so it attends to the first 3 and copies it
(`induction`). If a network works like this, then no induction score is left without its previous-token head, and the
loss without either head is that of a guess.

Shapes: N sequences, S positions, Q query positions, C copies, T tokens of a copy that predict the next, L layers,
H heads.
"""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxgrok.config import Config
from jaxgrok.nets.loss import cross_entropy
from jaxgrok.nets.model import make_model
from jaxgrok.nets.precision import at_precision
from jaxgrok.tasks import InductionTask, induction_task

# The version of what `scores` returns. Raise it whenever a measure is added, removed or defined anew: saved measures of
# another version are then computed again.
SCHEMA = 1
SCORES = (
    "previous_token",
    "previous_token_by_block",
    "induction",
    "induction_any_copy",
    "induction_by_copy",
    "same_token",
    "current_token",
)
THRESHOLD = 0.3  # tables count a head as one of a kind if its `Kind.share` is above this
SEQUENCES_STREAM = 4  # the PRNG stream of the sequences to measure on; training/run.py has the other streams
N_SEQUENCES = 64


def sequences(config: Config, n: int = N_SEQUENCES) -> tuple[Int[np.ndarray, "N S"], Int[np.ndarray, "N C"]]:
    """The tokens and copies (see `InductionTask.draw`) on which every network of this task is measured.

    Raises BadInput if the task is not induction.
    """
    return _draw(induction_task(config), n)


@functools.lru_cache(maxsize=8)
def _draw(task: InductionTask, n: int):
    key = jax.random.fold_in(jax.random.key(0), SEQUENCES_STREAM)
    return jax.tree.map(np.asarray, jax.jit(task.draw, static_argnums=1)(key, n))


def _scores_of_layer(
    pattern: Float[Array, "N H Q S"], first: int, copies: Int[Array, "N C"], reads: Int[Array, "N C-1 T"], block: int
) -> dict[str, Float[Array, "H"] | Float[Array, "H _"]]:
    """The scores of one layer.

    first: the position of the first query. reads: the positions that read a known token and predict the next. block:
    the positions in each block.
    """
    N, _, Q, _ = pattern.shape
    position = np.arange(max(first, 1), first + Q)
    to_previous = pattern[:, :, position - first, position - 1].mean(axis=0)
    in_block = np.minimum((position - 1) // block, copies.shape[1] - 1) == np.arange(copies.shape[1])[:, None]
    # Both [N, C - 1, T, C, H]: from token t of a later copy to token t of every copy, and to the token after that.
    query, n = reads[..., None] - first, np.arange(N).reshape(-1, 1, 1, 1)
    same = copies[:, None, None] + np.arange(reads.shape[-1], dtype=copies.dtype)[None, None, :, None]
    to_same, to_next = (pattern[n, :, query, key] for key in (same, same + 1))
    copy, later = np.arange(copies.shape[1]), np.arange(1, copies.shape[1])
    earlier, last = (of[None, :, None, :, None] for of in (copy < later[:, None], copy == later[:, None] - 1))

    def mean(attention, to):
        return jnp.where(to, attention, 0).sum(axis=3).mean(axis=(0, 1, 2))

    return {
        "previous_token": to_previous.mean(axis=1),
        "previous_token_by_block": jnp.stack([to_previous[:, of].mean(axis=1) for of in in_block], axis=1),
        "induction": mean(to_next, last),
        "induction_any_copy": mean(to_next, earlier),
        "induction_by_copy": jnp.stack([to_next[:, to:, :, to].mean(axis=(0, 1, 2)) for to in copy[:-1]], axis=1),
        "same_token": mean(to_same, earlier),
        "current_token": pattern[:, :, position - first, position].mean(axis=(0, 2)),
    }


def _with_heads(params: dict, kept: Bool[Array, "L H"]) -> dict:
    """The parameters with W_O set to zero for every head that is not kept."""
    out = dict(params)
    for layer, of_layer in enumerate(kept):
        block = params[f"blocks_{layer}"]
        W_O = jnp.where(of_layer[:, None, None], block["attn"]["W_O"], 0)
        out[f"blocks_{layer}"] = {**block, "attn": {**block["attn"], "W_O": W_O}}
    return out


def _run(config: Config, task: InductionTask, params: dict, tokens) -> tuple[Array, list[Float[Array, "N H Q S"]]]:
    """The logits, and the attention pattern of each layer."""
    # Flax's `apply` is typed as if it could return a FrozenDict of variables too.
    logits, activations = cast(tuple, make_model(config, task).apply({"params": params}, tokens))
    return logits, [activations[f"blocks.{layer}.attn.hook_pattern"] for layer in range(config.n_layers)]


@functools.partial(jax.jit, static_argnums=0)
@at_precision("highest")
def scores(
    config: Config, params: dict, tokens: Int[Array | np.ndarray, "N S"], copies: Int[Array | np.ndarray, "N C"]
) -> dict[str, Any]:
    """The attention of each head, and the network without it, on sequences from `sequences` or `InductionTask.draw`.

    The scores are mean attention over examples and query positions. They are [L, H] unless another shape is given.

    previous_token, current_token: the attention to the position before and to the position itself. The mean is over
        every position that the layer computes, except the first. The last layer computes only the positions that are
        read, which start at the second block.
    previous_token_by_block [L, H, C]: previous_token over the positions of each block; NaN if the layer computes none.
    induction: from the positions that read a token t of a later copy and predict the next, the attention to that next
        token in the copy before.
    induction_any_copy: the same to all earlier copies, summed.
    induction_by_copy [L, H, C - 1]: the same to this copy, over the copies after it.
    same_token: from the same positions, the attention to the token t itself in all earlier copies, summed. This is what
        a duplicate-token head has.
    chance: for each of these scores, its value [L, ...] in a head that attends equally to all that it sees.

    Attention to other places where the same token stands by chance does not count. The losses are over the same
    predictions, which are those that the training loss counts:

    loss: the loss of the network, [].
    loss_without: the loss with the output of that head (its W_O) set to zero.
    induction_without: the largest induction_any_copy score of any head without that head.

    Compiled once per config. Pure, so `jax.vmap` can map it over parameters. Raises BadInput if the task is not
    induction.
    """
    task, params = induction_task(config), jax.tree.map(jnp.asarray, params)
    tokens, copies = jnp.asarray(tokens), jnp.asarray(copies)
    start, stop = task.read
    first = [start if layer == config.n_layers - 1 else 0 for layer in range(config.n_layers)]
    reads = copies[:, 1:, None] + np.arange(task.repeat_len - 1, dtype=copies.dtype)[None, None]

    def of_layers(patterns) -> dict[str, Array]:
        layers = [_scores_of_layer(pattern, at, copies, reads, task.block) for pattern, at in zip(patterns, first)]
        return {name: jnp.stack([layer[name] for layer in layers]) for name in SCORES}

    def run(kept):
        logits, patterns = _run(config, task, _with_heads(params, kept), tokens)
        losses = cross_entropy(logits, tokens[:, start + 1 : stop + 1])
        loss = losses[np.arange(len(tokens))[:, None, None], reads - start].mean()
        return of_layers(patterns), loss

    def without(head):
        found, loss = run(~head)
        return found["induction_any_copy"].max(), loss

    N, S = tokens.shape
    alike = jnp.asarray(np.tril(np.ones((S, S))) / np.arange(1, S + 1)[:, None], config.dtype)
    queries = [slice(start, stop) if layer == config.n_layers - 1 else slice(0, S) for layer in range(config.n_layers)]
    chance = of_layers([jnp.broadcast_to(alike[at], (N, 1, *alike[at].shape)) for at in queries])
    shape = config.n_layers, config.n_heads
    found, loss = run(jnp.ones(shape, bool))
    heads = jnp.eye(config.n_layers * config.n_heads, dtype=bool).reshape(-1, *shape)
    left, losses = jax.lax.map(without, heads)
    return found | {
        "chance": {name: x[:, 0] for name, x in chance.items()},
        "loss": loss,
        "loss_without": losses.reshape(shape),
        "induction_without": left.reshape(shape),
    }


@functools.partial(jax.jit, static_argnums=0)
@at_precision("highest")
def patterns(config: Config, params: dict, tokens: Int[Array | np.ndarray, "N S"]) -> list[Float[Array, "N H S S"]]:
    """The attention pattern of each layer, from query to key. Queries that the last layer does not compute are NaN.

    Raises BadInput if the task is not induction.
    """
    task = induction_task(config)
    _, found = _run(config, task, jax.tree.map(jnp.asarray, params), tokens)
    every_query = jnp.full((*found[-1].shape[:2], task.n_ctx, task.n_ctx), jnp.nan, found[-1].dtype)
    found[-1] = every_query.at[:, :, slice(*task.read)].set(found[-1])
    return found


class Kind(NamedTuple):
    """How far each head is one of a kind.

    Attributes:
        score: the attention that defines the kind.
        share: (score - u) / (1 - u), where u is the score of a head that attends equally to all that it sees. It is 0
            for such a head and 1 if all attention counts.
        place: the block from which, or the copy to which, the head attends most.
    """

    score: Float[np.ndarray, "... L H"]
    share: Float[np.ndarray, "... L H"]
    place: Int[np.ndarray, "... L H"]


def kinds(m: dict[str, Any]) -> dict[str, Kind]:
    """{"previous_token": Kind, "induction": Kind} from the result of `scores`, which may have any leading axes.

    previous_token is measured in the block where its share is largest. A circuit may copy from one block alone, as the
    released network does, and a mean over all blocks would hide its head. induction counts attention to any earlier
    copy.
    """
    by_block, by_copy = (np.asarray(m[name]) for name in ("previous_token_by_block", "induction_by_copy"))
    share = _share(by_block, np.asarray(m["chance"]["previous_token_by_block"])[..., None, :])
    # NaN where the layer does not compute the block, and in a network that diverged.
    block = np.where(np.isnan(share), -np.inf, share).argmax(axis=-1)
    score, best_share = (np.take_along_axis(x, block[..., None], axis=-1)[..., 0] for x in (by_block, share))
    to_any = np.asarray(m["induction_any_copy"])
    to_any_share = _share(to_any, np.asarray(m["chance"]["induction_any_copy"])[..., None])
    return {
        "previous_token": Kind(score, best_share, block),
        "induction": Kind(to_any, to_any_share, by_copy.argmax(axis=-1)),
    }


def _share(score, uniform):
    return (score - uniform) / (1 - uniform)


def best_head(of_heads: Float[np.ndarray, "L H"]) -> tuple[int, int]:
    """(layer, head) of the largest value."""
    layer, head = np.unravel_index(np.argmax(of_heads), np.shape(of_heads))
    return int(layer), int(head)
