"""Whether a network adds as a clock or as a pizza: two measures of Zhong et al. 2023, "The Clock and the Pizza".

A clock multiplies waves of a with waves of b. A pizza reads the mean of the two embeddings alone, and its logits fall
where a and b lie opposite each other on the circle. So in a pizza the logits are as sensitive to a's embedding as to
b's, in the same direction, and the right logit depends on the distance a - b.

Published for two networks of their paper: gradient symmetricity 0.9937 and distance irrelevance 0.17 of a pizza
(attn_coeff 0), 0.3336 and 0.85 of a clock (attn_coeff 1).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgrok.config import Config
from jaxgrok.measures import fourier
from jaxgrok.nets.model import Transformer, unembedding
from jaxgrok.nets.precision import at_precision
from jaxgrok.tasks import modular_task

TRIPLES = 200  # the paper has 100
# Of tasks whose answer is a +- b in their group: what the distance a -+ b has before b.
DISTANCE = {"add": -1, "subtract": 1, "multiply": -1, "x/y": 1}


@at_precision("highest")
def gradient_symmetricity(
    config: Config, params: dict, triples: Int[np.ndarray, "3 n"] | None = None
) -> Float[Array, ""] | None:
    """The mean over triples (a, b, c) of the cosine between the gradients of the logit of c with respect to the
    embeddings of a and of b. 1: the network reads a and b in the same way, as their sum.

    triples: a, b and c; None means TRIPLES of them, drawn at random, the same for every network.

    None for the MLP network, which reads nothing but the sum of its one-hots.
    """
    if config.arch == "mlp":
        return None
    p, task, params = config.p, modular_task(config), jax.tree.map(jnp.asarray, params)
    drawn = np.random.default_rng(0).integers(len(task.group), size=(3, TRIPLES))
    a, b, c = task.group[drawn] if triples is None else triples
    W_E, tokens = params["embed"]["W_E"], np.arange(task.n_ctx)[None]
    # The same network with three tokens: this a, this b and "=".
    read_token = 2 if task.has_equals else None
    model = Transformer(config, len(tokens[0]), unembedding(params).shape[1], task.n_ctx, task.read, read_token)

    def gradients(a, b, c):
        def logit(pair):
            rows = jnp.concatenate([pair, W_E[p : p + 1]]) if task.has_equals else pair
            of_three = {**params, "embed": {"W_E": rows}, "unembed": {"W_U": unembedding(params)}}
            return model.forward(model.prepare(of_three, 1), tokens)[0][0, 0, c]

        of_a, of_b = jax.grad(logit)(jnp.stack([W_E[a], W_E[b]]))
        return (of_a * of_b).sum() / jnp.sqrt((of_a**2).sum() * (of_b**2).sum())

    return jax.vmap(gradients)(a, b, c).mean()


def distance_irrelevance(
    config: Config, logits: Float[Array, "P P P"], labels: Int[np.ndarray, "P P"]
) -> Float[Array, ""] | None:
    """The standard deviation of the right logit over the pairs at one distance a - b, averaged over distances, as a
    share of its standard deviation over all pairs. 0: the right logit is a function of the distance alone.

    For `subtract` the distance is a + b; for products and quotients a and b are discrete logarithms. None for a task
    whose answer is neither a + b nor a - b.
    """
    if not fourier.has_waves(modular_task(config)):
        return None
    P = len(logits)
    b, distance = np.indices((P, P))
    a = (distance - DISTANCE[config.task] * b) % P
    right = jnp.take_along_axis(logits, jnp.asarray(labels)[..., None], axis=2)[..., 0]
    return right[a, b].std(axis=0).mean() / right.std()
