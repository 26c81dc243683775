"""Every kind of transformer that we have, as PyTorch would be written: whole positions, no product of weights, and
autograd. In float64 it is the oracle of our logits and gradients. The code is our own.

Shapes: N examples, S positions, D residual, H heads, K head width.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jaxgrok.config import Config

ACTS = {"relu": torch.relu, "gelu": F.gelu, "square": torch.square}


def norm(x: Tensor, weights: dict[str, Tensor] | None) -> Tensor:
    if weights is None:
        return x
    if "b" in weights:
        return F.layer_norm(x, x.shape[-1:], weights["w"], weights["b"], eps=1e-5)
    return F.rms_norm(x, x.shape[-1:], weights["w"], eps=1e-5)


def logits(config: Config, w: dict[str, Any], tokens: Tensor) -> Tensor:
    """The logits [N, S, C] of a network with weights in our names and shapes."""
    S = tokens.shape[1]
    x = F.embedding(tokens, w["embed"]["W_E"]) + w["pos_embed"]["W_pos"][:S]
    seen = torch.ones(S, S, dtype=torch.bool)
    seen = seen.tril() if config.attention == "causal" else seen
    for layer in range(config.n_layers):
        block = w[f"blocks_{layer}"]
        into = norm(x, block.get("ln1"))
        q, k, v = (torch.einsum("nsd,hdk->nhsk", into, block["attn"][name]) for name in ("W_Q", "W_K", "W_V"))
        scores = (q @ k.transpose(2, 3) / math.sqrt(config.d_head)).masked_fill(~seen, -math.inf)
        pattern = config.attn_coeff * scores.softmax(-1) + (1 - config.attn_coeff) * seen.to(scores.dtype)
        x = config.residual_factor * x + torch.einsum("nhsk,hkd->nsd", pattern @ v, block["attn"]["W_O"])
        if "mlp" in block:
            mlp = block["mlp"]
            post = ACTS[config.act](norm(x, block.get("ln2")) @ mlp["W_in"] + mlp["b_in"])
            x = config.residual_factor * x + post @ mlp["W_out"] + mlp["b_out"]
    W_U = w["unembed"]["W_U"] if "unembed" in w else w["embed"]["W_E"].T
    return norm(x, w.get("ln_final")) @ W_U
