"""The networks in plain float64 numpy: every token projected, every position computed, nothing pruned."""

import numpy as np
from scipy.special import erf, softmax


def act(name, x):
    return np.maximum(x, 0) if name == "relu" else 0.5 * x * (1 + erf(x / np.sqrt(2)))


def transformer(params, tokens, activation="relu", residual_factor=1):
    """tokens [N, S] -> (logits [N, S, classes] at every position, {TransformerLens name: activation at every position}).

    Every sublayer gives residual_factor * x + sublayer(x). Blocks without "mlp" are attention only.
    """
    S = tokens.shape[1]
    x = params["embed"]["W_E"][tokens] + params["pos_embed"]["W_pos"][:S]
    causal = np.tril(np.ones((S, S), bool))
    seen = {}
    for layer in range(sum(name.startswith("blocks_") for name in params)):
        block = params[f"blocks_{layer}"]
        at = block["attn"]
        q, k, v = (np.einsum("nsd,hdk->nshk", x, at[w]) for w in ("W_Q", "W_K", "W_V"))
        scores = np.einsum("nqhk,nshk->nhqs", q, k) / np.sqrt(q.shape[-1])
        pattern = softmax(np.where(causal, scores, -np.inf), axis=-1)
        z = np.einsum("nhqs,nshk->nqhk", pattern, v)
        attn_out = np.einsum("nqhk,hkd->nqd", z, at["W_O"])
        out = residual_factor * x + attn_out
        local = {"hook_resid_pre": x, "attn.hook_q": q, "attn.hook_k": k, "attn.hook_v": v, "attn.hook_pattern": pattern}
        local |= {"attn.hook_z": z, "hook_attn_out": attn_out}
        if "mlp" in block:
            mid, mlp = out, block["mlp"]
            pre = mid @ mlp["W_in"] + mlp["b_in"]
            post = act(activation, pre)
            mlp_out = post @ mlp["W_out"] + mlp["b_out"]
            out = residual_factor * mid + mlp_out
            local |= {"hook_resid_mid": mid, "mlp.hook_pre": pre, "mlp.hook_post": post, "hook_mlp_out": mlp_out}
        local["hook_resid_post"] = out
        seen |= {f"blocks.{layer}.{hook}": value for hook, value in local.items()}
        x = out
    return x @ params["unembed"]["W_U"], seen


def one_hot_mlp(params, x, y, p, activation="relu"):
    """The MLP on an explicit sum of one-hots: x, y [N] -> logits [N, p]."""
    one_hot = np.eye(p)[x] + np.eye(p)[y]
    return act(activation, one_hot @ params["W_in"] + params["b_in"]) @ params["W_out"] + params["b_out"]


def cross_entropy(logits, target):
    """-log softmax at the target, in float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=-1)) - np.take_along_axis(shifted, target[..., None], axis=-1)[..., 0]


def from_authors(weights, n_heads):
    """The authors' names and shapes ({'embed.W_E': [d_model, d_vocab], ...}) as our parameters.

    Blocks are `blocks.N` or `attn_blocks.N`, with or without an MLP; W_O is [d_model, heads * d_head] or [heads, d_model, d_head].
    """
    params = {
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


def ours(name, x, n_heads):
    """One weight of a block, from the authors' shape to ours: ours multiply from the right."""
    if name == "W_O" and x.ndim == 2:
        return x.T.reshape(n_heads, -1, len(x))
    return x.transpose(0, 2, 1) if x.ndim == 3 else x.T
