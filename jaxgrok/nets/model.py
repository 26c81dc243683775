"""The networks, in Flax: `init` gives parameters under the field's names, `apply` gives logits and activations.

Both architectures have one interface. Activations come back as a dictionary under TransformerLens's names; those that a
caller does not use are pruned by `jit`. Shapes: N examples, S positions, Q read positions, D residual, H heads,
K head width, M neurons, V vocabulary.

`apply` is also given, in a training step with dropout, a key for each example: what is dropped does not depend on how
examples are laid into blocks.

The transformer does only what is needed. There is no LayerNorm, so the first layer's queries, keys and values are linear
in (token + position): the tables are projected once and their rows looked up. And the last layer computes queries, MLP
and logits only for the positions that are read.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgrok.config import Config
from jaxgrok.tasks import Task

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}


def normal(scale: float):
    """An initialiser: standard normal times `scale`, drawn in float32 in every dtype so that float64 runs start alike."""

    def init(key, shape, dtype):
        # float(): a numpy scale would make the product float64 under x64, and round it otherwise
        return (float(scale) * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    return init


def rows_of_tables(W_E, W_pos, tokens) -> Callable:
    """The projection `(W, positions) -> (W_E[tokens] + W_pos) @ W` at those positions, made by looking rows up in W_E @ W."""

    def project(W, positions: slice):
        return (W_E @ W)[tokens[:, positions]] + W_pos[positions] @ W

    return project


def rows_of_stream(resid) -> Callable:
    """The same for a residual stream [N, S, D] that depends on the whole sequence."""
    return lambda W, positions: resid[:, positions] @ W


class Attention(nn.Module):
    """Causal attention without biases; W_Q, W_K, W_V [H, D, K] and W_O [H, K, D]; scores divided by sqrt(K)."""

    n_heads: int
    d_model: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, project: Callable, queries: slice):
        H, D, K = self.n_heads, self.d_model, self.d_model // self.n_heads
        init = normal(1 / np.sqrt(D))
        W_Q, W_K, W_V = (self.param(name, init, (H, D, K), self.dtype) for name in ("W_Q", "W_K", "W_V"))
        W_O = self.param("W_O", init, (H, K, D), self.dtype)

        def flat(W):
            return W.transpose(1, 0, 2).reshape(D, H * K)

        def by_head(x):
            return x.reshape(*x.shape[:2], H, K).transpose(0, 2, 1, 3)

        q, k, v = (by_head(project(flat(W), at)) for W, at in ((W_Q, queries), (W_K, slice(None)), (W_V, slice(None))))
        scores = (q / np.sqrt(K).astype(self.dtype)) @ k.swapaxes(-1, -2)
        n_ctx = k.shape[2]
        visible = np.arange(n_ctx)[queries][:, None] >= np.arange(n_ctx)
        if not visible.all():
            scores = jnp.where(visible, scores, -jnp.inf)
        # A softmax that divides after the product with v, K numbers a query instead of S: long sequences notice.
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        share = 1 / weights.sum(axis=-1, keepdims=True)
        z = jnp.einsum("nhqk,nhq->nhqk", weights @ v, share[..., 0])
        q, k, v, z = (x.transpose(0, 2, 1, 3) for x in (q, k, v, z))
        out = z.reshape(*z.shape[:2], H * K) @ W_O.reshape(H * K, D)
        seen = {"hook_q": q, "hook_k": k, "hook_v": v, "hook_attn_scores": scores, "hook_pattern": weights * share, "hook_z": z}
        return out, seen


class MLP(nn.Module):
    """W_in [D, M], b_in, W_out [M, D], b_out; every weight N(0, 1/D), W_out too; biases start at zero."""

    d_mlp: int
    d_model: int
    act: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, resid):
        init, zeros = normal(1 / np.sqrt(self.d_model)), nn.initializers.zeros
        W_in = self.param("W_in", init, (self.d_model, self.d_mlp), self.dtype)
        b_in = self.param("b_in", zeros, (self.d_mlp,), self.dtype)
        W_out = self.param("W_out", init, (self.d_mlp, self.d_model), self.dtype)
        b_out = self.param("b_out", zeros, (self.d_model,), self.dtype)
        pre = resid @ W_in + b_in
        post = ACTIVATIONS[self.act](pre)
        return post @ W_out + b_out, {"hook_pre": pre, "hook_post": post}


def with_dropout(x, rate: float, keys, place: int):
    """x [N, ...] with a share `rate` of its entries zeroed and the rest scaled up; keys [N], one per example, None: x itself.

    place: a number for each use within a network, so that no two drop alike.
    """
    if keys is None or not rate:
        return x
    share = np.float32(1 - rate)  # of this type the mask is the same under x64
    kept = jax.vmap(lambda key, x: jax.random.bernoulli(jax.random.fold_in(key, place), share, x.shape))(keys, x)
    return jnp.where(kept, x / (1 - rate), 0)


class Block(nn.Module):
    """Attention, then MLP where the network has MLPs, each added to the residual stream; computed at the positions `queries`."""

    config: Config
    layer: int

    @nn.compact
    def __call__(self, project: Callable, resid_pre, queries: slice, keys):
        c, dtype = self.config, jnp.dtype(self.config.dtype)

        def added(resid, out, place):
            scaled = resid if c.residual_factor == 1 else c.residual_factor * resid
            return scaled + with_dropout(out, c.dropout, keys, 2 * self.layer + place)

        attn_out, attn = Attention(c.n_heads, c.d_model, dtype, name="attn")(project, queries)
        resid_mid = added(resid_pre, attn_out, 0)
        activations = {"hook_resid_pre": resid_pre, **{f"attn.{name}": x for name, x in attn.items()}, "hook_attn_out": attn_out}
        if c.arch == "attn_only":
            return resid_mid, activations | {"hook_resid_post": resid_mid}
        mlp_out, mlp = MLP(c.mlp_width, c.d_model, c.act, dtype, name="mlp")(resid_mid)
        resid_post = added(resid_mid, mlp_out, 1)
        activations |= {"hook_resid_mid": resid_mid, **{f"mlp.{name}": x for name, x in mlp.items()}}
        return resid_post, activations | {"hook_mlp_out": mlp_out, "hook_resid_post": resid_post}


class Table(nn.Module):
    """One named weight matrix, in a module of its own so that its path reads as in TransformerLens (`embed.W_E`)."""

    weight: str
    initializer: Callable
    shape: tuple[int, int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self):
        return self.param(self.weight, self.initializer, self.shape, self.dtype)


class Transformer(nn.Module):
    """The post's transformers: W_E [V, D], W_pos [n_ctx, D], blocks, W_U [D, classes]; returns logits at the read positions."""

    config: Config
    d_vocab: int
    d_vocab_out: int
    n_ctx: int
    read: tuple[int, int]

    @nn.compact
    def __call__(self, tokens, dropout_keys=None):
        """tokens [N, S] int32, S at most n_ctx -> logits [N, Q, classes], {TransformerLens name: activation}."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        init = normal(1 / np.sqrt(c.d_model))
        W_E = Table("W_E", init, (self.d_vocab, c.d_model), dtype, name="embed")()
        W_pos = Table("W_pos", init, (self.n_ctx, c.d_model), dtype, name="pos_embed")()[: tokens.shape[1]]
        activations = {"hook_embed": W_E[tokens], "hook_pos_embed": jnp.broadcast_to(W_pos, (*tokens.shape, c.d_model))}
        project = rows_of_tables(W_E, W_pos, tokens)
        stream = None
        for layer in range(c.n_layers):
            queries = slice(*self.read) if layer == c.n_layers - 1 else slice(None)
            before = W_E[tokens[:, queries]] + W_pos[queries] if stream is None else stream[:, queries]
            stream, block = Block(c, layer, name=f"blocks_{layer}")(project, before, queries, dropout_keys)
            activations |= {f"blocks.{layer}.{name}": x for name, x in block.items()}
            project = rows_of_stream(stream)
        W_U = Table("W_U", normal(1 / np.sqrt(self.d_vocab_out)), (c.d_model, self.d_vocab_out), dtype, name="unembed")()
        return stream @ W_U, activations


class OneHotMLP(nn.Module):
    """The two-weight-layer MLP of Liu et al.: the sum of the one-hots of x and y in R^p, p -> M -> p (spec: EXPERIMENTS.md A4).

    Weights are normal with variance 1 / (width of the layer's input), biases zero: the published values are unknown.
    """

    config: Config
    p: int

    @nn.compact
    def __call__(self, tokens, dropout_keys=None):
        """tokens [N, 3] int32 (x, y, "=") -> logits [N, 1, p], activations. It has no dropout."""
        M, dtype, zeros = self.config.mlp_width, jnp.dtype(self.config.dtype), nn.initializers.zeros
        W_in = self.param("W_in", normal(1 / np.sqrt(self.p)), (self.p, M), dtype)
        b_in = self.param("b_in", zeros, (M,), dtype)
        W_out = self.param("W_out", normal(1 / np.sqrt(M)), (M, self.p), dtype)
        b_out = self.param("b_out", zeros, (self.p,), dtype)
        pre = W_in[tokens[:, :2]].sum(axis=1) + b_in
        post = ACTIVATIONS[self.config.act](pre)
        logits = post @ W_out + b_out
        return logits[:, None], {"mlp.hook_pre": pre[:, None], "mlp.hook_post": post[:, None]}


def make_model(config: Config, task: Task) -> nn.Module:
    """The network of a config for a task. Pure: `model.init(key, tokens)["params"]`, `model.apply({"params": params}, tokens)`."""
    if config.arch == "mlp":
        return OneHotMLP(config, task.p)
    return Transformer(config, task.d_vocab, task.d_vocab_out, config.n_ctx or task.n_ctx, task.read)
