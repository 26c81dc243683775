"""The networks, as Flax modules. `init` makes the parameters; `apply` returns the logits and the activations.

The transformers and the one-hot MLP have the same interface. Parameters and activations have TransformerLens's names.
Activations that a caller does not use cost nothing under `jit`, which prunes them.

A training step with dropout also gives `apply` one PRNG key per example, so that what is dropped does not depend on how
the examples are divided into blocks.

The transformer computes only what is needed. There is no LayerNorm, so the first layer's queries, keys and values are
linear in (token + position): the embedding tables are projected once, and rows of the result are looked up. The last
layer computes queries, the MLP and logits only at the read positions.

Letters in shapes: N examples, S positions, Q positions with queries (in the last layer the read positions), D residual,
H heads, K head width, M neurons, V vocabulary, C classes, P residue.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxgrok.config import Config
from jaxgrok.tasks import Task

Activations = dict[str, Array]  # by TransformerLens's names
Initializer = Callable[..., Array]
# (W [D, H*K], positions) -> the input of a block at these positions, times W: [N, Q, H*K]
Project = Callable[[Float[Array, "D H*K"], slice], Float[Array, "N Q H*K"]]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
ALL = slice(None)  # every position


def context(config: Config, task: Task) -> int:
    """The number of positions that the network has: the config's, or by default as many as a sequence of the task."""
    return task.n_ctx if config.n_ctx is None else config.n_ctx


def normal(scale: float | np.floating) -> Initializer:
    """An initializer that draws from N(0, scale^2). It draws in float32 for every dtype, so that a float64 run starts
    from the same weights as a float32 run."""

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        # float(): a numpy scale would make the product float64 under x64, and round it otherwise
        return (float(scale) * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    return init


def rows_of_tables(W_E: Float[Array, "V D"], W_pos: Float[Array, "S D"], tokens: Int[Array, "N S"]) -> Project:
    """The projection (W_E[tokens] + W_pos) @ W of the embedded tokens, computed by looking up rows of W_E @ W."""

    def project(W: Float[Array, "D H*K"], positions: slice) -> Float[Array, "N Q H*K"]:
        return (W_E @ W)[tokens[:, positions]] + (W_pos[positions] @ W)[None]

    return project


def rows_of_stream(resid: Float[Array, "N S D"]) -> Project:
    """The same projection of a residual stream that depends on the whole sequence."""
    return lambda W, positions: resid[:, positions] @ W


class Attention(nn.Module):
    """Causal attention without biases. W_Q, W_K, W_V [H, D, K] and W_O [H, K, D]; scores are divided by sqrt(K)."""

    n_heads: int
    d_model: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, project: Project, queries: slice) -> tuple[Float[Array, "N Q D"], Activations]:
        H, D, K = self.n_heads, self.d_model, self.d_model // self.n_heads
        init = normal(1 / np.sqrt(D))
        W_Q, W_K, W_V = (self.param(name, init, (H, D, K), self.dtype) for name in ("W_Q", "W_K", "W_V"))
        W_O = self.param("W_O", init, (H, K, D), self.dtype)

        def flat(W: Float[Array, "H D K"]) -> Float[Array, "D H*K"]:
            return W.transpose(1, 0, 2).reshape(D, H * K)

        def by_head(x: Float[Array, "N Q H*K"]) -> Float[Array, "N H Q K"]:
            return x.reshape(*x.shape[:2], H, K).transpose(0, 2, 1, 3)

        q, k, v = (by_head(project(flat(W), at)) for W, at in ((W_Q, queries), (W_K, ALL), (W_V, ALL)))
        scores = (q / np.sqrt(K).astype(self.dtype)) @ k.swapaxes(-1, -2)
        n_ctx = k.shape[2]
        visible = np.arange(n_ctx)[queries][:, None] >= np.arange(n_ctx)
        if not visible.all():
            scores = jnp.where(visible[None, None], scores, -jnp.inf)
        # The softmax divides after the product with v: K divisions per query instead of S, faster on long sequences.
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        share = 1 / weights.sum(axis=-1, keepdims=True)
        z = jnp.einsum("nhqk,nhq->nhqk", weights @ v, share[..., 0])
        q, k, v, z = (x.transpose(0, 2, 1, 3) for x in (q, k, v, z))
        out = z.reshape(*z.shape[:2], H * K) @ W_O.reshape(H * K, D)
        seen = {"hook_q": q, "hook_k": k, "hook_v": v, "hook_z": z}
        return out, seen | {"hook_attn_scores": scores, "hook_pattern": weights * share}


def affine(x: Float[Array, "... A"], W: Float[Array, "A B"], b: Float[Array, "B"]) -> Float[Array, "... B"]:
    """x @ W + b."""
    # With broadcast_to in place of expand_dims, XLA rounds the gradients of a training step differently.
    return x @ W + jnp.expand_dims(b, range(x.ndim - 1))


class MLP(nn.Module):
    """The MLP of a transformer block. W_in [D, M], b_in [M], W_out [M, D], b_out [D].

    Both weight matrices start as N(0, 1/D), W_out too, and biases start at zero.
    """

    d_mlp: int
    d_model: int
    act: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, resid: Float[Array, "... D"]) -> tuple[Float[Array, "... D"], Activations]:
        init, zeros = normal(1 / np.sqrt(self.d_model)), nn.initializers.zeros
        W_in = self.param("W_in", init, (self.d_model, self.d_mlp), self.dtype)
        b_in = self.param("b_in", zeros, (self.d_mlp,), self.dtype)
        W_out = self.param("W_out", init, (self.d_mlp, self.d_model), self.dtype)
        b_out = self.param("b_out", zeros, (self.d_model,), self.dtype)
        pre = affine(resid, W_in, b_in)
        post = ACTIVATIONS[self.act](pre)
        return affine(post, W_out, b_out), {"hook_pre": pre, "hook_post": post}


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


class Block(nn.Module):
    """Attention, then the MLP if the network has MLPs. Each output is added to the residual stream."""

    config: Config
    layer: int

    @nn.compact
    def __call__(
        self, project: Project, resid_pre: Float[Array, "N Q D"], queries: slice, keys: Key[Array, "N"] | None
    ) -> tuple[Float[Array, "N Q D"], Activations]:
        """The residual stream after this block at the positions `queries`, and the activations.

        project: gives the block's input at any position, projected. resid_pre: the input at the positions `queries`.
        """
        c, dtype = self.config, jnp.dtype(self.config.dtype)

        def added(resid: Float[Array, "N Q D"], out: Float[Array, "N Q D"], place: int) -> Float[Array, "N Q D"]:
            scaled = resid if c.residual_factor == 1 else c.residual_factor * resid
            return scaled + with_dropout(out, c.dropout, keys, 2 * self.layer + place)

        attn_out, attn = Attention(c.n_heads, c.d_model, dtype, name="attn")(project, queries)
        resid_mid = added(resid_pre, attn_out, 0)
        activations = {"hook_resid_pre": resid_pre, **_under("attn", attn), "hook_attn_out": attn_out}
        if c.arch == "attn_only":
            return resid_mid, activations | {"hook_resid_post": resid_mid}
        mlp_out, mlp = MLP(c.mlp_width, c.d_model, c.act, dtype, name="mlp")(resid_mid)
        resid_post = added(resid_mid, mlp_out, 1)
        activations |= {"hook_resid_mid": resid_mid, **_under("mlp", mlp)}
        return resid_post, activations | {"hook_mlp_out": mlp_out, "hook_resid_post": resid_post}


def _under(prefix: str, activations: Activations) -> Activations:
    return {f"{prefix}.{name}": x for name, x in activations.items()}


class Table(nn.Module):
    """One weight matrix in a module of its own, so that its path is TransformerLens's name for it (`embed.W_E`)."""

    weight: str
    initializer: Initializer
    shape: tuple[int, int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> Float[Array, "..."]:
        return self.param(self.weight, self.initializer, self.shape, self.dtype)


class Transformer(nn.Module):
    """The post's transformer: W_E [V, D], W_pos [n_ctx, D], blocks and W_U [D, C].

    read: (start, stop) of the read positions.
    """

    config: Config
    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    read: tuple[int, int]

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "N S"], dropout_keys: Key[Array, "N"] | None = None
    ) -> tuple[Float[Array, "N Q C"], Activations]:
        """The logits at the read positions, and all activations.

        S is at most n_ctx. dropout_keys None means no dropout.
        """
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        init = normal(1 / np.sqrt(c.d_model))
        W_E = Table("W_E", init, (self.d_vocab, c.d_model), dtype, name="embed")()
        W_pos = Table("W_pos", init, (self.n_ctx, c.d_model), dtype, name="pos_embed")()[: tokens.shape[1]]
        activations = {"hook_embed": W_E[tokens]}
        activations["hook_pos_embed"] = jnp.broadcast_to(W_pos, (*tokens.shape, c.d_model))
        project = rows_of_tables(W_E, W_pos, tokens)
        stream = None
        for layer in range(c.n_layers):
            queries = slice(*self.read) if layer == c.n_layers - 1 else ALL
            resid_pre = W_E[tokens[:, queries]] + W_pos[None, queries] if stream is None else stream[:, queries]
            stream, block = Block(c, layer, name=f"blocks_{layer}")(project, resid_pre, queries, dropout_keys)
            activations |= _under(f"blocks.{layer}", block)
            project = rows_of_stream(stream)
        assert stream is not None  # Config has at least one layer
        init = normal(1 / np.sqrt(self.d_vocab_out))
        W_U = Table("W_U", init, (c.d_model, self.d_vocab_out), dtype, name="unembed")()
        return stream @ W_U, activations


class OneHotMLP(nn.Module):
    """The MLP of Liu et al., with two weight layers p -> M -> p on the sum of the one-hots of x and y (spec:
    EXPERIMENTS.md A4).

    Weights are normal with variance 1 / (width of the layer's input), and biases start at zero. The published initial
    values are unknown.
    """

    config: Config

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "N 3"], dropout_keys: Key[Array, "N"] | None = None
    ) -> tuple[Float[Array, "N 1 P"], Activations]:
        """The logits and all activations. tokens: x, y and "=". The network has no dropout."""
        p, M, dtype = self.config.p, self.config.mlp_width, jnp.dtype(self.config.dtype)
        zeros = nn.initializers.zeros
        W_in = self.param("W_in", normal(1 / np.sqrt(p)), (p, M), dtype)
        b_in = self.param("b_in", zeros, (M,), dtype)
        W_out = self.param("W_out", normal(1 / np.sqrt(M)), (M, p), dtype)
        b_out = self.param("b_out", zeros, (p,), dtype)
        pre = W_in[tokens[:, :2]].sum(axis=1) + b_in[None]
        post = ACTIVATIONS[self.config.act](pre)
        logits = affine(post, W_out, b_out)
        return logits[:, None], {"mlp.hook_pre": pre[:, None], "mlp.hook_post": post[:, None]}


def make_model(config: Config, task: Task) -> nn.Module:
    """The network of a config for a task.

    It is pure: `model.init(key, tokens)["params"]` makes parameters, and `model.apply({"params": params}, tokens)`
    returns (logits, activations).
    """
    if config.arch == "mlp":
        return OneHotMLP(config)
    return Transformer(config, task.d_vocab, task.d_vocab_out, context(config, task), task.read)
