"""The networks: their parameters as Flax modules, and one forward pass, written as pure functions in two parts.

`prepare` computes what depends on the parameters alone. A training step calls it once, and its gradient is pulled back
once. `forward` computes what depends on the examples, a block of them at a time. `__call__` is one after the other, so
that `init` and `apply` work as for any Flax module. All return the logits and the activations. Parameters and
activations have TransformerLens's names. Activations that a caller does not use cost nothing under `jit`, which prunes
them.

By default there is no LayerNorm, so much of the network is linear, and the transformer computes only what is needed:

- The first layer's queries, keys and values are linear in (token + position): the tables are projected, and rows of the
  result are looked up.
- Where there are few tokens and many positions, no rows of keys and values are looked up. The table has each query's
  scores with every token and every position. The attention that falls on each of these is summed, and goes to the
  residual stream through W_V W_O, or, where the query is a constant (below), to z through the table of values.
- The last layer computes queries, the MLP and logits only at the read positions.
- A neuron adds a fixed vector to the logits, so the last layer's neurons are read out through W_out W_U.
- Where a network of one layer reads one token, the same in every example, the query is a constant: then attention
  scores are rows of a table, and the output of the heads goes to neurons and logits through W_O W_in and W_O W_U.

Products of weights are used where they need fewer operations, and never where a norm comes between. A training
step with dropout also gives `forward` one PRNG key per example, so that what is dropped does not depend on how the
examples are divided into blocks.

Letters in shapes: N examples, S positions, Q positions with queries (in the last layer the read positions), D residual,
H heads, K head width, M neurons, V vocabulary, C classes, P residue, A any width.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key

from jaxgrok.config import BadInput, Config
from jaxgrok.tasks import Task

Params = dict[str, Any]  # a tree of arrays, nested as Flax has it
Stream = Callable[[slice], Array]  # positions -> the residual stream there [N, Q, D]
Activations = dict[str, Array]  # by TransformerLens's names
Initializer = Callable[..., Array]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "square": jnp.square,
}
ALL = slice(None)  # every position


def context(config: Config, task: Task) -> int:
    """The number of positions that the network has: the config's, or by default as many as a sequence of the task."""
    return task.n_ctx if config.n_ctx is None else config.n_ctx


# --- parameters -------------------------------------------------------------------------------------------------------


def normal(scale: float | np.floating) -> Initializer:
    """An initializer that draws from N(0, scale^2). It draws in float32 for every dtype, so that a float64 run starts
    from the same weights as a float32 run."""

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        # float(): a numpy scale would make the product float64 under x64, and round it otherwise
        return (float(scale) * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    return init


zeros, ones = nn.initializers.zeros, nn.initializers.ones
NORM_EPS = 1e-5  # under the square root of a norm, as in PyTorch and TransformerLens


class Weights(nn.Module):
    """Weights in a module of their own, so that their paths are TransformerLens's names (`embed.W_E`).

    specs: the name, initializer and shape of each, in the order in which they are drawn.
    """

    specs: tuple[tuple[str, Initializer, tuple[int, ...]], ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> Params:
        return {name: self.param(name, init, shape, self.dtype) for name, init, shape in self.specs}


class Block(nn.Module):
    """The weights of a block: W_Q, W_K, W_V [H, D, K] and W_O [H, K, D] of its attention, and, unless it is
    `attn_only`, W_in [D, M], b_in [M], W_out [M, D] and b_out [D] of its MLP. With a norm, also those of `ln1` before
    attention and `ln2` before the MLP.

    All weight matrices start as N(0, 1/D), W_out too, and biases start at zero. Attention has no biases.
    """

    config: Config

    @nn.compact
    def __call__(self) -> Params:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        H, D, K, M = c.n_heads, c.d_model, c.d_head, c.mlp_width
        init = normal(1 / np.sqrt(D))
        inputs = tuple((name, init, (H, D, K)) for name in ("W_Q", "W_K", "W_V"))
        of_block = {"attn": Weights((*inputs, ("W_O", init, (H, K, D))), dtype, name="attn")()}
        of_block |= norm_weights(c, "ln1", *(["ln2"] if c.arch != "attn_only" else []))
        if c.arch != "attn_only":
            specs = (("W_in", init, (D, M)), ("b_in", zeros, (M,)), ("W_out", init, (M, D)), ("b_out", zeros, (D,)))
            of_block["mlp"] = Weights(specs, dtype, name="mlp")()
        return of_block


def norm_weights(config: Config, *names: str) -> Params:
    """In a module: the weights of norms, a factor w [D], which starts at 1, and in LayerNorm a term b [D], which starts
    at 0. Empty if the config has no norm."""
    D, dtype = config.d_model, jnp.dtype(config.dtype)
    specs = {"none": (), "layernorm": (("w", ones, (D,)), ("b", zeros, (D,))), "rmsnorm": (("w", ones, (D,)),)}
    return {name: Weights(specs[config.norm], dtype, name=name)() for name in names if config.norm != "none"}


# --- parts of the forward pass ----------------------------------------------------------------------------------------


class Projected(NamedTuple):
    """The embedding tables, projected: W_E @ W and W_pos @ W."""

    tokens: Float[Array, "V A"]
    positions: Float[Array, "S A"]

    def rows(self, tokens: Int[Array | np.ndarray, "N S"], at: slice) -> Float[Array, "N Q A"]:
        """(W_E[tokens] + W_pos) @ W at some positions."""
        return self.tokens[tokens[:, at]] + self.positions[: tokens.shape[1]][None, at]


class ProjectedInPlace(NamedTuple):
    """The embedding of every token at every position, normalised and projected. A norm is not linear, so that tokens
    and positions have no tables of their own."""

    places: Float[Array, "S V A"]

    def rows(self, tokens: Int[Array | np.ndarray, "N S"], at: slice) -> Float[Array, "N Q A"]:
        """The projected embeddings at some positions."""
        return self.places[np.arange(tokens.shape[1])[None, at], tokens[:, at]]


Tables = dict[str, Any]  # Projected, ProjectedInPlace, or a product of weights


class Prepared(NamedTuple):
    """What depends on a transformer's parameters alone.

    first: what the first layer needs: tables projected to q, k and v (width H*K); or to v and to the scores of a
        constant query (width H); or, for other queries where `attends_by_token`, to each query's scores with every
        token and position, `qk` (width H*(V+S)), and W_V W_O [H, V+S, D]. Empty with a norm and fewer examples than
        tokens.
    folded: products of the last layer's weights, by name. What takes the place of W_out W_U is its transpose W_L
        [C, M], and so is W_O W_U [C, H*K]: XLA multiplies these gradients nearly twice as fast.
    """

    params: Params
    first: Tables
    folded: Params


def flat(W: Float[Array, "H D K"]) -> Float[Array, "D H*K"]:
    """W_Q, W_K or W_V with all heads side by side."""
    return W.transpose(1, 0, 2).reshape(W.shape[1], -1)


def affine(x: Float[Array, "... A"], W: Float[Array, "A B"], b: Float[Array, "B"]) -> Float[Array, "... B"]:
    """x @ W + b."""
    # With broadcast_to in place of expand_dims, XLA rounds the gradients of a training step differently.
    return x @ W + jnp.expand_dims(b, range(x.ndim - 1))


def normed(x: Float[Array, "N Q D"], weights: Params | None) -> Float[Array, "N Q D"]:
    """LayerNorm, or RMSNorm if there is no b: x, less its mean in LayerNorm, divided by its root mean square, times w,
    plus b. Without weights, x as it is."""
    if weights is None:
        return x
    if "b" in weights:
        x = x - x.mean(axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + NORM_EPS) * weights["w"][None, None]
    return x + weights["b"][None, None] if "b" in weights else x


def unembedding(params: Params) -> Float[Array, "D C"]:
    """W_U, which in a network with tied embeddings is the transpose of W_E."""
    return params["unembed"]["W_U"] if "unembed" in params else params["embed"]["W_E"].T


def causal(scores: Float[Array, "N H Q S"], queries: slice) -> Float[Array, "N H Q S"]:
    """Attention scores, with -inf where a query would look ahead."""
    positions = np.arange(scores.shape[-1])
    visible = positions[queries][:, None] >= positions
    return scores if visible.all() else jnp.where(visible[None, None], scores, -jnp.inf)


def attend(
    scores: Float[Array, "N H Q S"], v: Float[Array, "N H S K"], coeff: float = 1
) -> tuple[Float[Array, "N H Q K"], Float[Array, "N H Q S"]]:
    """(the values, mixed by attention; the attention pattern).

    coeff: c in c softmax + (1 - c), the weight of each position that is seen: one whose score is not -inf.
    """
    if coeff != 1:
        seen = (scores > -jnp.inf).astype(scores.dtype)
        pattern = coeff * jax.nn.softmax(scores, axis=-1) + (1 - coeff) * seen
        return pattern @ v, pattern
    # The softmax divides after the product with v: K divisions per query instead of S, faster on long sequences.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    share = 1 / weights.sum(axis=-1, keepdims=True)
    return jnp.einsum("nhqk,nhq->nhqk", weights @ v, share[..., 0]), weights * share


def by_token(
    pattern: Float[Array, "N H Q S"], tokens: Int[Array | np.ndarray, "N S"], d_vocab: int
) -> Float[Array, "N Q H V+S"]:
    """The attention that falls on each token, summed over the positions where it stands; then on each position."""
    pattern = pattern.swapaxes(1, 2)
    of_token = _rows_by_head(pattern) @ _is_token(tokens, d_vocab, pattern.dtype)
    return jnp.concatenate([of_token.reshape(*pattern.shape[:3], -1), pattern], axis=-1)


def of_positions(
    scores: Float[Array, "N Q H V+S"], tokens: Int[Array | np.ndarray, "N S"], d_vocab: int
) -> Float[Array, "N H Q S"]:
    """The scores with each position: those with its token, plus those with the position itself."""
    S = tokens.shape[1]
    of_token, of_position = scores[..., :d_vocab], scores[..., d_vocab : d_vocab + S]
    is_token = _is_token(tokens, d_vocab, scores.dtype).swapaxes(1, 2)
    of_token = (_rows_by_head(of_token) @ is_token).reshape(of_position.shape)
    return (of_token + of_position).swapaxes(1, 2)


def _rows_by_head(x: Float[Array, "N Q H A"]) -> Float[Array, "N Q*H A"]:
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _is_token(tokens: Int[Array | np.ndarray, "N S"], d_vocab: int, dtype: jnp.dtype) -> Float[Array, "N S V"]:
    # A product with these zeros and ones is quicker than looking rows up, whose gradient is added up row by row.
    return jax.nn.one_hot(tokens, d_vocab, dtype=dtype)


def with_dropout(
    x: Float[Array | np.ndarray, "N ..."], rate: float, keys: Key[Array, "N"] | None, place: int
) -> Float[Array | np.ndarray, "N ..."]:
    """x with a share `rate` of its entries set to zero and the others scaled up by 1 / (1 - rate).

    keys: one PRNG key per example; None means no dropout.
    place: a number for each use within a network, so that no two uses drop the same entries.
    """
    if keys is None or rate == 0:
        return x
    share = np.float32(1 - rate)  # float32, so that the mask is the same with and without x64
    kept = jax.vmap(lambda key, x: jax.random.bernoulli(jax.random.fold_in(key, place), share, x.shape))(keys, x)
    return jnp.where(kept, x / (1 - rate), 0)


# --- networks ---------------------------------------------------------------------------------------------------------


class Transformer(nn.Module):
    """The post's transformer: W_E [V, D], W_pos [n_ctx, D], blocks and W_U [D, C].

    read: (start, stop) of the read positions. read_token: the token there, if it is one position, and its token the
    same in every example; else None.
    """

    config: Config
    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    read: tuple[int, int]
    read_token: int | None = None

    @nn.compact
    def __call__(
        self, tokens: Int[Array | np.ndarray, "N S"], dropout_keys: Key[Array, "N"] | None = None
    ) -> tuple[Float[Array, "N Q C"], Activations]:
        """The logits at the read positions, and all activations.

        S is at most n_ctx. dropout_keys None means no dropout. Raises BadInput for another token where every example
        has read_token, unless the tokens are traced.
        """
        if not self.is_initializing():
            self._check(tokens)
        c, dtype = self.config, jnp.dtype(self.config.dtype)

        def table(module: str, name: str, shape: tuple[int, int], scale: float) -> Params:
            return Weights(((name, normal(scale), shape),), dtype, name=module)()

        D, C = c.d_model, self.d_vocab_out
        if c.tied == "yes" and self.d_vocab != C:
            accepted = f"no, where the output has other classes ({C}) than the input has tokens ({self.d_vocab})"
            raise BadInput("tied", c.tied, accepted)
        params = {
            "embed": table("embed", "W_E", (self.d_vocab, D), 1 / np.sqrt(D)),
            "pos_embed": table("pos_embed", "W_pos", (self.n_ctx, D), 1 / np.sqrt(D)),
            **{f"blocks_{layer}": Block(c, name=f"blocks_{layer}")() for layer in range(c.n_layers)},
            **norm_weights(c, "ln_final"),
            **({} if c.tied == "yes" else {"unembed": table("unembed", "W_U", (D, C), 1 / np.sqrt(C))}),
        }
        return self.forward(self.prepare(params, len(tokens)), tokens, dropout_keys)

    def prepare(self, params: Params, n: int) -> Prepared:
        """What depends on the parameters alone. n: for how many examples it will be used."""
        params = {**params, "unembed": {"W_U": unembedding(params)}}
        if not self.has_tables(n):
            return Prepared(params, {}, {})
        attn, ln1 = params["blocks_0"]["attn"], params["blocks_0"].get("ln1")
        W_E, W_pos = params["embed"]["W_E"], params["pos_embed"]["W_pos"]

        def projected(W: Float[Array, "D A"]) -> Projected | ProjectedInPlace:
            if ln1 is None:
                return Projected(W_E @ W, W_pos @ W)
            return ProjectedInPlace(normed(W_E[None] + W_pos[:, None], ln1) @ W)

        first: Tables
        if self._query_is_constant:
            constant = normed(self._constant_stream(params)[None, None], ln1)[0, 0]
            q = self._scaled(jnp.einsum("d,hdk->hk", constant, attn["W_Q"]))
            first = {"scores": projected(jnp.einsum("hdk,hk->dh", attn["W_K"], q)), "v": projected(flat(attn["W_V"]))}
        elif self.attends_by_token:
            x = jnp.concatenate([W_E, W_pos])
            q, k, v = (jnp.einsum("xd,hdk->hxk", x, attn[name]) for name in ("W_Q", "W_K", "W_V"))
            scores = jnp.einsum("hxk,hyk->xhy", self._scaled(q), k).reshape(len(x), -1)
            first = {"qk": Projected(scores[: self.d_vocab], scores[self.d_vocab :]), "W_V W_O": v @ attn["W_O"]}
        else:
            first = {name: projected(flat(attn[f"W_{name.upper()}"])) for name in ("q", "k", "v")}
        return Prepared(params, first, self._folded(params, n))

    def has_tables(self, n: int) -> bool:
        """Whether, for so many examples, the first layer takes rows of projected tables. With a norm these have a row
        for each token at each position, so that they are worth it where there are more examples than tokens."""
        return self.config.norm == "none" or self.d_vocab <= n

    @property
    def attends_by_token(self) -> bool:
        """Whether the first layer adds up attention by token. With few tokens and wide heads that is quicker than
        looking up keys and values at every position: 5-digit addition has 12 tokens at 18 positions and heads of width
        32, the post's network 114 tokens at 3 positions. The context is taken for the length of a sequence, which
        changes no number. docs/results/speed.md has what was measured."""
        if self._query_is_constant:
            is_quicker = self.d_vocab <= 2 * self.n_ctx
        else:
            is_quicker = self.d_vocab <= self.n_ctx and self.d_vocab + self.n_ctx <= 2 * self.config.d_head
        return self.config.norm == "none" and is_quicker

    def _check(self, tokens: Int[Array | np.ndarray, "N S"]) -> None:
        known = not isinstance(tokens, Tracer)
        if self._query_is_constant and known and (np.asarray(tokens)[:, self.read[0]] != self.read_token).any():
            raise BadInput("tokens", "another token", f"{self.read_token} at position {self.read[0]}")

    @property
    def _query_is_constant(self) -> bool:
        return self.config.n_layers == 1 and self.read_token is not None

    def _constant_stream(self, params: Params) -> Float[Array, "D"]:
        """The embedding at the read position, where it is the same in every example."""
        return params["embed"]["W_E"][self.read_token] + params["pos_embed"]["W_pos"][self.read[0]]

    def _scaled(self, q: Float[Array, "..."]) -> Float[Array, "..."]:
        """Queries, divided by sqrt(K)."""
        return q / np.sqrt(self.config.d_head).astype(q.dtype)

    def folds(self, n: int) -> tuple[bool, bool]:
        """Whether, for so many examples, it takes fewer operations to multiply weights first: W_out by W_U, and W_O by
        what follows it. With dropout or a norm, which come between them, both are false."""
        D, M, C, rows = self.config.d_model, self.config.mlp_width, self.d_vocab_out, n * (self.read[1] - self.read[0])
        neurons = M > 0 and (rows + D) * M * C < rows * (M + C) * D
        heads = self._query_is_constant and rows > M + C and (neurons or not M)
        return (neurons, heads) if self.config.dropout == 0 and self.config.norm == "none" else (False, False)

    def _folded(self, params: Params, n: int) -> Params:
        """The products of the last layer's weights that `folds` names."""
        block, W_U = params[f"blocks_{self.config.n_layers - 1}"], params["unembed"]["W_U"]
        (neurons, heads), factor, folded = self.folds(n), self.config.residual_factor, {}
        if neurons:
            W_out, b_out = block["mlp"]["W_out"], block["mlp"]["b_out"]
            folded = {"W_out W_U": W_U.T @ W_out.T, "b_U": b_out @ W_U}
        if heads:
            W_O, constant = block["attn"]["W_O"].reshape(len(W_U), len(W_U)), factor * self._constant_stream(params)
            direct = factor * W_U if neurons else W_U
            folded |= {"W_O W_U": direct.T @ W_O.T, "b_U": constant @ direct + folded.get("b_U", 0)}
        if heads and neurons:
            W_in, b_in = block["mlp"]["W_in"], block["mlp"]["b_in"]
            folded |= {"W_O W_in": W_O @ W_in, "b_in": constant @ W_in + b_in}
        return folded

    def forward(
        self, prepared: Any, tokens: Int[Array | np.ndarray, "N S"], dropout_keys: Key[Array, "N"] | None = None
    ) -> tuple[Float[Array, "N Q C"], Activations]:
        """The logits at the read positions, and all activations, from what `prepare` has computed.

        Raises BadInput for another token where every example has read_token, unless the tokens are traced.
        """
        if self.scope is None:
            self._check(tokens)
        c, params = self.config, prepared.params
        W_E, W_pos = params["embed"]["W_E"], params["pos_embed"]["W_pos"][: tokens.shape[1]]
        activations = {"hook_embed": W_E[tokens], "hook_pos_embed": jnp.broadcast_to(W_pos, (*tokens.shape, c.d_model))}

        def stream(at: slice) -> Float[Array, "N Q D"]:
            return W_E[tokens[:, at]] + W_pos[None, at]

        z: Any = None
        seen: Activations = {}
        for layer in range(c.n_layers):
            is_last = layer == c.n_layers - 1
            queries = slice(*self.read) if is_last else ALL
            tables, block = {} if layer else prepared.first, params[f"blocks_{layer}"]
            into = functools.partial(_normed_at, stream, block.get("ln1"))
            z, attn_out, of_attention = self._attention(block["attn"], tables, tokens, into, queries)
            folded = prepared.folded if is_last else {}
            of_block = self._block(layer, folded, params, stream(queries), z, attn_out, dropout_keys)
            seen = of_block | of_attention
            activations |= {f"blocks.{layer}.{name}": x for name, x in seen.items()}
            stream = functools.partial(_at, seen["hook_resid_post"])
        return self._logits(prepared, z, seen), activations

    def _attention(
        self,
        weights: Params,
        tables: Tables,
        tokens: Int[Array | np.ndarray, "N S"],
        stream: Stream,
        queries: slice,
    ) -> tuple[Float[Array, "N Q H*K"], Float[Array, "N Q D"], Activations]:
        """(what the heads of a block read, side by side; what they write; the activations). tables: of the first
        layer."""

        def project(name: str, at: slice) -> Float[Array, "N Q H K"]:
            table, W = tables.get(name), flat(weights[f"W_{name.upper()}"])
            x = stream(at) @ W if table is None else table.rows(tokens, at)
            return x.reshape(*x.shape[:2], self.config.n_heads, self.config.d_head)

        q, k, v = project("q", queries), project("k", ALL), project("v", ALL)
        if "scores" in tables:
            scores = tables["scores"].rows(tokens, ALL).swapaxes(1, 2)[:, :, None]
        elif "qk" in tables:
            of_query = tables["qk"].rows(tokens, queries).reshape(*q.shape[:3], -1)
            scores = of_positions(of_query, tokens, self.d_vocab)
        else:
            scores = self._scaled(q).transpose(0, 2, 1, 3) @ k.transpose(0, 2, 3, 1)
        if self.config.attention == "causal":
            scores = causal(scores, queries)
        z, pattern = attend(scores, v.swapaxes(1, 2), self.config.attn_coeff)
        z = z.swapaxes(1, 2)
        X = self.d_vocab + tokens.shape[1]
        if "scores" in tables and self.attends_by_token:
            values = jnp.concatenate(tables["v"])[:X].reshape(X, *v.shape[2:])
            z = jnp.einsum("nqhx,xhk->nqhk", by_token(pattern, tokens, self.d_vocab), values)
        seen = {"hook_q": q, "hook_k": k, "hook_v": v, "hook_attn_scores": scores, "hook_pattern": pattern, "hook_z": z}
        z = z.reshape(*z.shape[:2], -1)
        if "W_V W_O" in tables:
            seen_by_token = by_token(pattern, tokens, self.d_vocab)
            attn_out = jnp.einsum("nqhx,hxd->nqd", seen_by_token, tables["W_V W_O"][:, :X])
        else:
            attn_out = z @ weights["W_O"].reshape(-1, self.config.d_model)
        return z, attn_out, {f"attn.{name}": x for name, x in seen.items()}

    def _block(
        self,
        layer: int,
        folded: Params,
        params: Params,
        resid_pre: Float[Array, "N Q D"],
        z: Float[Array, "N Q H*K"],
        attn_out: Float[Array, "N Q D"],
        dropout_keys: Key[Array, "N"] | None,
    ) -> Activations:
        """The activations of a block from what its heads read, z, and write, attn_out. Each sublayer's output is added
        to the stream."""
        c, block = self.config, params[f"blocks_{layer}"]

        def added(resid: Float[Array, "N Q D"], out: Float[Array, "N Q D"], place: int) -> Float[Array, "N Q D"]:
            scaled = resid if c.residual_factor == 1 else c.residual_factor * resid
            return scaled + with_dropout(out, c.dropout, dropout_keys, place)

        resid_mid = added(resid_pre, attn_out, 2 * layer)
        seen = {"hook_resid_pre": resid_pre, "hook_attn_out": attn_out}
        if "mlp" not in block:
            return seen | {"hook_resid_post": resid_mid}
        weights = block["mlp"]
        if "W_O W_in" in folded:
            pre = affine(z, folded["W_O W_in"], folded["b_in"])
        else:
            pre = affine(normed(resid_mid, block.get("ln2")), weights["W_in"], weights["b_in"])
        post = ACTIVATIONS[c.act](pre)
        mlp_out = affine(post, weights["W_out"], weights["b_out"])
        seen |= {"hook_resid_mid": resid_mid, "mlp.hook_pre": pre, "mlp.hook_post": post, "hook_mlp_out": mlp_out}
        return seen | {"hook_resid_post": added(resid_mid, mlp_out, 2 * layer + 1)}

    def _logits(self, prepared: Prepared, z: Float[Array, "N Q H*K"], seen: Activations) -> Float[Array, "N Q C"]:
        """The logits, from the activations of the last block and from what its heads have read."""
        folded, W_U = prepared.folded, prepared.params["unembed"]["W_U"]
        if not folded:
            return normed(seen["hook_resid_post"], prepared.params.get("ln_final")) @ W_U
        if "W_O W_U" in folded:
            logits = z @ folded["W_O W_U"].T
        else:
            logits = self.config.residual_factor * seen["hook_resid_mid"] @ W_U
        if "W_out W_U" in folded:
            logits = logits + seen["mlp.hook_post"] @ folded["W_out W_U"].T
        return logits + folded["b_U"][None, None]


def _at(resid: Float[Array, "N S D"], at: slice) -> Float[Array, "N Q D"]:
    """A residual stream at some positions."""
    return resid[:, at]


def _normed_at(stream: Stream, weights: Params | None, at: slice) -> Float[Array, "N Q D"]:
    """What the norm before attention makes of the stream at some positions."""
    return normed(stream(at), weights)


class OneHotMLP(nn.Module):
    """The MLP of Liu et al., with two weight layers p -> M -> p on the sum of the one-hots of x and y (spec:
    EXPERIMENTS.md A4).

    Weights are normal with variance 1 / (width of the layer's input), and biases start at zero. The published initial
    values are unknown.
    """

    config: Config

    @nn.compact
    def __call__(
        self, tokens: Int[Array | np.ndarray, "N 3"], dropout_keys: Key[Array, "N"] | None = None
    ) -> tuple[Float[Array, "N 1 P"], Activations]:
        """The logits and all activations. tokens: x, y and "=". The network has no dropout."""
        p, M, dtype = self.config.p, self.config.mlp_width, jnp.dtype(self.config.dtype)
        params = {
            "W_in": self.param("W_in", normal(1 / np.sqrt(p)), (p, M), dtype),
            "b_in": self.param("b_in", zeros, (M,), dtype),
            "W_out": self.param("W_out", normal(1 / np.sqrt(M)), (M, p), dtype),
            "b_out": self.param("b_out", zeros, (p,), dtype),
        }
        return self.forward(self.prepare(params, len(tokens)), tokens)

    def prepare(self, params: Params, n: int) -> Params:
        """The parameters: no product of them saves anything."""
        return params

    def forward(
        self, prepared: Any, tokens: Int[Array | np.ndarray, "N 3"], dropout_keys: Key[Array, "N"] | None = None
    ) -> tuple[Float[Array, "N 1 P"], Activations]:
        """The logits and all activations."""
        pre = prepared["W_in"][tokens[:, :2]].sum(axis=1) + prepared["b_in"][None]
        post = ACTIVATIONS[self.config.act](pre)
        logits = affine(post, prepared["W_out"], prepared["b_out"])
        return logits[:, None], {"mlp.hook_pre": pre[:, None], "mlp.hook_post": post[:, None]}


Model = Transformer | OneHotMLP


def make_model(config: Config, task: Task) -> Model:
    """The network of a config for a task.

    It is pure: `model.init(key, tokens)["params"]` makes parameters, `model.apply({"params": params}, tokens)` returns
    (logits, activations), and so does `model.forward(model.prepare(params, n), tokens)`.
    """
    if config.arch == "mlp":
        return OneHotMLP(config)
    return Transformer(config, task.d_vocab, task.d_vocab_out, context(config, task), task.read, task.read_token)
