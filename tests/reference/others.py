"""The mainline as others would write it: what scripts/benchmark.py compares our step with. The code is our own.

Every program trains R runs of addition modulo p side by side, or one, in float32 with full-batch AdamW, and gives the
train loss of each epoch, and the test loss where it is asked for:

- `FastTorch` (in torch_fast.py): PyTorch as a good engineer would write it: queries, MLP and logits at the last
  position alone, compiled, all runs at once by torch.func.
- `PlainJax`: the model as it is usually written in JAX, every position through every layer, with a scan over epochs and
  vmap over runs.
- `Nnx`: the same in Flax NNX with its own attention, embeddings and scan, after the loop of the public program
  Davidnet/grokking-mechanism. It has no biases, and a run of its own split.

Shapes: R runs, N examples, S positions, D residual, H heads, K head width, M neurons, V vocabulary.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxgrok.config import Config
from jaxgrok.tasks import make_task


def splits(config: Config, runs: int) -> list[tuple[Int[np.ndarray, "R N S"], Int[np.ndarray, "R N"]]]:
    """(tokens, targets) of the train and of the test pairs of seeds 0, 1, ..."""
    parts = zip(*(make_task(config).split(0.3, seed) for seed in range(runs)))
    return [
        (np.stack([np.asarray(x.tokens) for x in part]), np.stack([np.asarray(x.targets)[:, 0] for x in part]))
        for part in parts
    ]


def initial_weights(config: Config, runs: int) -> dict[str, Float[np.ndarray, "R ..."]]:
    """Weights in our shapes, by name, from the seeds 0, 1, ... of numpy."""
    V, D, H, K, M = config.p + 1, config.d_model, config.n_heads, config.d_head, config.mlp_width
    shapes = {"W_E": (V, D), "W_pos": (3, D), **dict.fromkeys(("W_Q", "W_K", "W_V"), (H, D, K)), "W_O": (H, K, D)}
    shapes |= {"W_in": (D, M), "b_in": (M,), "W_out": (M, D), "b_out": (D,), "W_U": (D, V)}

    def of_run(seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        draw = {name: rng.normal(size=shape) / math.sqrt(V if name == "W_U" else D) for name, shape in shapes.items()}
        return {name: np.float32(np.zeros_like(x) if name[0] == "b" else x) for name, x in draw.items()}

    drawn = [of_run(seed) for seed in range(runs)]
    return {name: np.stack([weights[name] for weights in drawn]) for name in shapes}


class PlainJax:
    """The straightforward model in JAX. `epochs(n)` trains n epochs; returns the losses [R, n] before each step."""

    def __init__(self, config: Config, runs: int, with_test: bool):
        self.parts = jax.tree.map(jnp.asarray, splits(config, runs))
        warmup = optax.schedules.linear_schedule(0, 1e-3, 10)
        optimizer = optax.adamw(warmup, b1=0.9, b2=0.98, weight_decay=1.0)
        params = jax.tree.map(jnp.asarray, initial_weights(config, runs))
        self.state = params, jax.vmap(optimizer.init)(params)

        def epoch(state: Any, parts: Any) -> tuple[Any, Any]:
            (train, test), (params, moments) = parts, state
            train_loss, grads = jax.value_and_grad(self.loss)(params, *train)
            updates, moments = optimizer.update(grads, moments, params)
            test_loss = self.loss(params, *test) if with_test else train_loss
            return (optax.apply_updates(params, updates), moments), (train_loss, test_loss)

        def of_run(state: Any, parts: Any, n: int) -> tuple[Any, Any]:
            return jax.lax.scan(lambda state, _: epoch(state, parts), state, length=n)

        self.run = jax.jit(
            lambda state, parts, n: jax.vmap(lambda s, x: of_run(s, x, n))(state, parts), static_argnums=2
        )

    @staticmethod
    def loss(w: dict[str, Array], tokens: Int[Array, "N S"], targets: Int[Array, "N"]) -> Float[Array, ""]:
        x = w["W_E"][tokens] + w["W_pos"][None]
        q, k, v = (jnp.einsum("nsd,hdk->nhsk", x, w[name]) for name in ("W_Q", "W_K", "W_V"))
        scores = jnp.einsum("nhqk,nhsk->nhqs", q, k) / np.float32(math.sqrt(q.shape[-1]))
        pattern = jax.nn.softmax(jnp.where(jnp.tri(3, dtype=bool)[None, None], scores, -jnp.inf))
        x = x + jnp.einsum("nhqs,nhsk,hkd->nqd", pattern, v, w["W_O"])
        x = x + jax.nn.relu(x @ w["W_in"] + w["b_in"][None, None]) @ w["W_out"] + w["b_out"][None, None]
        logits = (x @ w["W_U"])[:, -1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def epochs(self, n: int) -> tuple[Float[Array, "R n"], Float[Array, "R n"]]:
        self.state, losses = self.run(self.state, self.parts, n)
        return jax.block_until_ready(losses)


class _NnxNet(nnx.Module):
    def __init__(self, config: Config, rngs: nnx.Rngs):
        D, M, V = config.d_model, config.mlp_width, config.p + 1
        self.embed, self.pos_embed = nnx.Embed(V, D, rngs=rngs), nnx.Embed(3, D, rngs=rngs)
        sizes = {"num_heads": config.n_heads, "in_features": D, "qkv_features": D, "out_features": D}
        self.attention = nnx.MultiHeadAttention(**sizes, use_bias=False, decode=False, rngs=rngs)
        self.inner = nnx.Linear(D, M, use_bias=False, rngs=rngs)
        self.outer = nnx.Linear(M, D, use_bias=False, rngs=rngs)
        self.unembed = nnx.Linear(D, config.p, use_bias=False, rngs=rngs)

    def __call__(self, tokens: Int[Array, "N S"]) -> Float[Array, "N P"]:
        x = self.embed(tokens) + self.pos_embed(jnp.arange(3))[None]
        x = x + self.attention(x, mask=nnx.make_causal_mask(tokens))
        x = x + self.outer(nnx.relu(self.inner(x)))
        return self.unembed(x[:, -1])


class Nnx:
    """The model in Flax NNX, one run, with the test loss at every epoch."""

    def __init__(self, config: Config):
        self.parts = [tuple(jnp.asarray(x[0]) for x in part) for part in splits(config, 1)]
        self.net = _NnxNet(config, nnx.Rngs(0))
        self.optimizer = nnx.Optimizer(self.net, optax.adamw(1e-3, b1=0.9, b2=0.98, weight_decay=1.0), wrt=nnx.Param)

        def loss(net: Any, tokens: Any, targets: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(net(tokens), targets).mean()

        @nnx.jit(static_argnames=("n",))
        def run(net: Any, optimizer: Any, train: Any, test: Any, n: int) -> Any:
            def epoch(carry: Any) -> tuple[Any, Any]:
                net, optimizer = carry
                train_loss, grads = nnx.value_and_grad(loss)(net, *train)
                optimizer.update(net, grads)
                return (net, optimizer), (train_loss, loss(net, *test))

            return nnx.scan(epoch, length=n, in_axes=nnx.Carry, out_axes=(nnx.Carry, 0))((net, optimizer))

        self.run = run

    def epochs(self, n: int) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
        (self.net, self.optimizer), losses = self.run(self.net, self.optimizer, *self.parts, n=n)
        return jax.block_until_ready(losses)
