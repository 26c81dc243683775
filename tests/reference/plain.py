"""The networks in plain float64 numpy. They project every token, compute every position and prune nothing.

Shapes: N examples, S positions, V classes, P residue.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import erf, softmax


def act(name: str, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The activation function `relu`, `gelu` or `square`."""
    return {"relu": np.maximum(x, 0), "gelu": 0.5 * x * (1 + erf(x / np.sqrt(2))), "square": x**2}[name]


def transformer(
    params: dict[str, Any],
    tokens: Int[np.ndarray, "N S"],
    activation: str = "relu",
    residual_factor: float = 1,
    attention: str = "causal",
    attn_coeff: float = 1,
) -> tuple[Float[np.ndarray, "N S V"], dict[str, np.ndarray]]:
    """The logits at every position, and the activations at every position by their TransformerLens names.

    Every sublayer returns residual_factor * x + sublayer(x). Blocks without "mlp" have only attention. A position that
    is seen has the weight attn_coeff * softmax + 1 - attn_coeff. Without "unembed", W_U is the transpose of W_E. Norms
    are where their weights are.
    """
    S = tokens.shape[1]
    x = params["embed"]["W_E"][tokens] + params["pos_embed"]["W_pos"][:S]
    seen_by = np.tril(np.ones((S, S), bool)) if attention == "causal" else np.ones((S, S), bool)
    seen = {}
    for layer in range(sum(name.startswith("blocks_") for name in params)):
        block = params[f"blocks_{layer}"]
        at = block["attn"]
        into = norm(x, block.get("ln1"))
        q, k, v = (np.einsum("nsd,hdk->nshk", into, at[w]) for w in ("W_Q", "W_K", "W_V"))
        scores = np.einsum("nqhk,nshk->nhqs", q, k) / np.sqrt(q.shape[-1])
        pattern = attn_coeff * softmax(np.where(seen_by, scores, -np.inf), axis=-1) + (1 - attn_coeff) * seen_by
        z = np.einsum("nhqs,nshk->nqhk", pattern, v)
        attn_out = np.einsum("nqhk,hkd->nqd", z, at["W_O"])
        out = residual_factor * x + attn_out
        local = {
            "hook_resid_pre": x,
            "attn.hook_q": q,
            "attn.hook_k": k,
            "attn.hook_v": v,
            "attn.hook_pattern": pattern,
        }
        local |= {"attn.hook_z": z, "hook_attn_out": attn_out}
        if "mlp" in block:
            mid, mlp = out, block["mlp"]
            pre = norm(mid, block.get("ln2")) @ mlp["W_in"] + mlp["b_in"]
            post = act(activation, pre)
            mlp_out = post @ mlp["W_out"] + mlp["b_out"]
            out = residual_factor * mid + mlp_out
            local |= {"hook_resid_mid": mid, "mlp.hook_pre": pre, "mlp.hook_post": post, "hook_mlp_out": mlp_out}
        local["hook_resid_post"] = out
        seen |= {f"blocks.{layer}.{hook}": value for hook, value in local.items()}
        x = out
    x = norm(x, params.get("ln_final"))
    return x @ (params["unembed"]["W_U"] if "unembed" in params else params["embed"]["W_E"].T), seen


def norm(x: Float[np.ndarray, "N S D"], weights: dict[str, np.ndarray] | None) -> Float[np.ndarray, "N S D"]:
    """LayerNorm, RMSNorm if there is no b, or nothing without weights; eps is 1e-5."""
    if weights is None:
        return x
    if "b" in weights:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weights["w"] + weights["b"]
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weights["w"]


def one_hot_mlp(
    params: dict[str, Any], x: Int[np.ndarray, "N"], y: Int[np.ndarray, "N"], p: int, activation: str = "relu"
) -> Float[np.ndarray, "N P"]:
    """The logits of the MLP network, from an explicit sum of one-hots."""
    one_hot = np.eye(p)[x] + np.eye(p)[y]
    return act(activation, one_hot @ params["W_in"] + params["b_in"]) @ params["W_out"] + params["b_out"]


def cross_entropy(logits: Float[np.ndarray, "... V"], target: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """-log softmax at the target, in float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=-1)) - np.take_along_axis(shifted, target[..., None], axis=-1)[..., 0]


def from_authors(weights: dict[str, np.ndarray], n_heads: int) -> dict[str, Any]:
    """Our parameters, from weights in the authors' names and shapes ({'embed.W_E': [d_model, d_vocab], ...}).

    Blocks are named `blocks.N` or `attn_blocks.N` and may have an MLP. W_O is [d_model, heads * d_head] or
    [heads, d_model, d_head].
    """
    params: dict[str, Any] = {
        "embed": {"W_E": weights["embed.W_E"].T},
        "pos_embed": {"W_pos": weights["pos_embed.W_pos"]},
        "unembed": {"W_U": weights["unembed.W_U"]},
    }
    for key in weights:
        *place, name = key.split(".")  # (attn_)blocks, N, attn or mlp, W_Q
        if len(place) == 3 and name != "mask":
            block = params.setdefault(f"blocks_{place[1]}", {})
            block.setdefault(place[2], {})[name] = ours(name, weights[key], n_heads)
    return params


def ours(name: str, x: np.ndarray, n_heads: int) -> np.ndarray:
    """One weight of a block in our shape, from the authors' shape. Our weights multiply from the right."""
    if name == "W_O" and x.ndim == 2:
        return x.T.reshape(n_heads, -1, len(x))
    return x.transpose(0, 2, 1) if x.ndim == 3 else x.T
