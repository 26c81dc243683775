"""What the heads of an induction network attend to, and what the network is without each (spec: EXPERIMENTS.md A2).

    config = make_config("induction")
    m = heads.scores(config, params, *heads.sequences(config))
    m["induction"]                                              # [L, H]

Two heads can predict a repeated token. In the worked example of tasks/induction.py, at the second 7: a head of an earlier
layer has written into each position which token stands before it, by attending to it (`previous_token`); a head of a later
layer, which looks for "7 stands before me", attends to the first 3 (`induction`) and copies it. If that is how a network
works, then without its previous-token head no induction score is left, and without either the loss is that of a guess.

Shapes: N sequences, S positions, Q query positions, C copies, T tokens of a copy that predict the next, L layers, H heads.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrok.config import BadInput, Config
from jaxgrok.nets.loss import cross_entropy
from jaxgrok.nets.model import make_model
from jaxgrok.tasks import make_task

SCORES = (
    "previous_token",
    "previous_token_by_block",
    "induction",
    "induction_any_copy",
    "induction_by_copy",
    "same_token",
    "current_token",
)
THRESHOLD = 0.3  # of `Kind.share`: above it, tables call a head one of a kind
SEQUENCES_STREAM = 4  # fold_in constant of the sequences that networks are measured on (training.py has the others)
N_SEQUENCES = 64


def sequences(config: Config, n: int = N_SEQUENCES):
    """(tokens [n, S], copies [n, C]), as numpy: the sequences that every network of this task is measured on, see `InductionTask.draw`."""
    _check(config)
    return _drawn(make_task(config), n)


@functools.lru_cache(maxsize=8)
def _drawn(task, n: int):
    key = jax.random.fold_in(jax.random.key(0), SEQUENCES_STREAM)
    return jax.tree.map(np.asarray, jax.jit(task.draw, static_argnums=1)(key, n))


def _check(config: Config) -> None:
    if config.task != "induction":
        raise BadInput("task", config.task, "induction, whose sequences have copies to attend to")


def _score(pattern, first: int, copies, reads, block: int) -> dict:
    """The scores of one layer, [H] or [H, C or C - 1], from its pattern [N, H, Q, S], queries from position `first`; reads
    [N, C - 1, T]: the positions of a known token; block: positions of each."""
    N, _, Q, _ = pattern.shape
    position = np.arange(max(first, 1), first + Q)
    to_previous = pattern[:, :, position - first, position - 1].mean(axis=0)
    in_block = np.minimum((position - 1) // block, copies.shape[1] - 1) == np.arange(copies.shape[1])[:, None]
    # [N, C - 1, T, C, H]: from token t of a later copy to token t of every copy, and to the token after that.
    query, n = reads[..., None] - first, np.arange(N).reshape(-1, 1, 1, 1)
    same = copies[:, None, None] + np.arange(reads.shape[-1])[:, None]
    to_same, to_next = (pattern[n, :, query, key] for key in (same, same + 1))
    copy, later = np.arange(copies.shape[1]), np.arange(1, copies.shape[1])
    earlier, last = (of[:, None, :, None] for of in (copy < later[:, None], copy == later[:, None] - 1))

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


def _with_heads(params: dict, kept) -> dict:
    """The parameters with W_O zero of every head not in kept [L, H] bool."""
    out = dict(params)
    for layer, of_layer in enumerate(kept):
        block = params[f"blocks_{layer}"]
        W_O = jnp.where(of_layer[:, None, None], block["attn"]["W_O"], 0)
        out[f"blocks_{layer}"] = {**block, "attn": {**block["attn"], "W_O": W_O}}
    return out


@functools.partial(jax.jit, static_argnums=0)
def scores(config: Config, params, tokens, copies) -> dict:
    """What each head attends to, and the network without it; tokens [N, S], copies [N, C] as `InductionTask.draw` gives them.

    Attention, [L, H], means over examples and query positions:

    previous_token, current_token: to the position before, and to itself; over every position but the first that the layer
        computes. The last layer computes those alone that are read: from the second block on.
        previous_token_by_block [L, H, C]: over those of each block; NaN where the layer computes none.
    induction: over the positions that read a token t of a later copy and predict the next, to the position of that next token
        in the copy before. induction_any_copy: in any earlier copy, summed. induction_by_copy [L, H, C - 1]: in this one, over
        the copies after it.
    same_token: from the same positions to the token t itself in any earlier copy, summed (a duplicate-token head).
    chance: {each of these: [L, ...]} of a head that attends to all that it sees alike.

    What else the same token stands at by chance counts for none. And over the same predictions, those that the loss counts:

    loss; loss_without [L, H]: with that head's output zero (its W_O). induction_without [L, H]: the largest induction score
        of any head then, to any copy.

    Compiled once per config; pure, so that `jax.vmap` maps it over parameters. Raises BadInput for another task.
    """
    _check(config)
    with jax.default_matmul_precision("highest"):
        return _scores(config, jax.tree.map(jnp.asarray, params), tokens, copies)


def _scores(config: Config, params, tokens, copies) -> dict:
    task = make_task(config)
    model, (start, stop) = make_model(config, task), task.read
    first = [start if layer == config.n_layers - 1 else 0 for layer in range(config.n_layers)]
    reads = copies[:, 1:, None] + np.arange(task.repeat_len - 1)

    def of_layers(patterns) -> dict:
        layers = [_score(pattern, at, copies, reads, task.block) for pattern, at in zip(patterns, first)]
        return {name: jnp.stack([layer[name] for layer in layers]) for name in SCORES}

    def run(kept):
        logits, activations = model.apply({"params": _with_heads(params, kept)}, tokens)
        losses = cross_entropy(logits, tokens[:, start + 1 : stop + 1])
        loss = losses[np.arange(len(tokens))[:, None, None], reads - start].mean()
        return of_layers([activations[f"blocks.{layer}.attn.hook_pattern"] for layer in range(config.n_layers)]), loss

    def without(head):
        found, loss = run(~head)
        return found["induction_any_copy"].max(), loss

    N, S = tokens.shape
    alike = np.tril(np.ones((S, S))) / np.arange(1, S + 1)[:, None]
    alike = jnp.asarray(alike, config.dtype)
    chance = of_layers([jnp.broadcast_to(alike[at : stop if at else S], (N, 1, (stop if at else S) - at, S)) for at in first])
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
def patterns(config: Config, params, tokens) -> list:
    """The attention patterns [N, H, S, S] of each layer, from query to key; NaN at queries that the last layer does not compute."""
    task = make_task(config)
    with jax.default_matmul_precision("highest"):
        _, activations = make_model(config, task).apply({"params": jax.tree.map(jnp.asarray, params)}, tokens)
    found = [activations[f"blocks.{layer}.attn.hook_pattern"] for layer in range(config.n_layers)]
    start, stop = task.read
    found[-1] = jnp.full((*found[-1].shape[:2], task.n_ctx, task.n_ctx), jnp.nan, found[-1].dtype).at[:, :, start:stop].set(found[-1])
    return found


class Kind(NamedTuple):
    """How far heads are one of a kind, each [..., L, H]. score: attention; share: (score - u) / (1 - u), u what a uniform head has
    there: 0 for it, 1 for all attention; place: the block in which, or the copy to which, it is most."""

    score: np.ndarray
    share: np.ndarray
    place: np.ndarray


def kinds(m: dict) -> dict[str, Kind]:
    """{kind: Kind} from `scores`, with any leading axes.

    previous_token: in the block in which its share is largest. A circuit may copy from one block alone, and the released network
    does: a mean over all of them would hide its head. induction: to any earlier copy.
    """
    by_block, by_copy = (np.asarray(m[name]) for name in ("previous_token_by_block", "induction_by_copy"))
    share = _share(by_block, np.asarray(m["chance"]["previous_token_by_block"])[..., None, :])
    block = np.where(np.isnan(share), -np.inf, share).argmax(axis=-1)  # not computed, or of a network that diverged
    previous = Kind(*(np.take_along_axis(x, block[..., None], axis=-1)[..., 0] for x in (by_block, share)), block)
    to_any = np.asarray(m["induction_any_copy"])
    share = _share(to_any, np.asarray(m["chance"]["induction_any_copy"])[..., None])
    return {"previous_token": previous, "induction": Kind(to_any, share, by_copy.argmax(axis=-1))}


def _share(score, uniform):
    return (score - uniform) / (1 - uniform)


def best_head(of_heads) -> tuple[int, int]:
    """(layer, head) with the largest of [L, H]."""
    layer, head = np.unravel_index(np.argmax(of_heads), np.shape(of_heads))
    return int(layer), int(head)
