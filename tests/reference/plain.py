"""The networks in plain float64 numpy: every token projected, every position computed, nothing pruned."""

import numpy as np
from scipy.special import erf, softmax


def act(name, x):
    return np.maximum(x, 0) if name == "relu" else 0.5 * x * (1 + erf(x / np.sqrt(2)))


def transformer(params, tokens, activation="relu"):
    """tokens [N, S] -> (logits [N, S, classes] at every position, {TransformerLens name: activation at every position})."""
    x = params["embed"]["W_E"][tokens] + params["pos_embed"]["W_pos"]
    S = tokens.shape[1]
    causal = np.tril(np.ones((S, S), bool))
    seen = {}
    layers = sorted(name for name in params if name.startswith("blocks_"))
    for layer, name in enumerate(layers):
        at, mlp = params[name]["attn"], params[name]["mlp"]
        q, k, v = (np.einsum("nsd,hdk->nshk", x, at[w]) for w in ("W_Q", "W_K", "W_V"))
        scores = np.einsum("nqhk,nshk->nhqs", q, k) / np.sqrt(q.shape[-1])
        pattern = softmax(np.where(causal, scores, -np.inf), axis=-1)
        z = np.einsum("nhqs,nshk->nqhk", pattern, v)
        mid = x + np.einsum("nqhk,hkd->nqd", z, at["W_O"])
        pre = mid @ mlp["W_in"] + mlp["b_in"]
        post = act(activation, pre)
        out = mid + post @ mlp["W_out"] + mlp["b_out"]
        local = {"hook_resid_pre": x, "attn.hook_q": q, "attn.hook_k": k, "attn.hook_v": v, "attn.hook_pattern": pattern}
        local |= {"attn.hook_z": z, "hook_attn_out": mid - x, "hook_resid_mid": mid, "mlp.hook_pre": pre, "mlp.hook_post": post}
        local |= {"hook_mlp_out": out - mid, "hook_resid_post": out}
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
    """The authors' names and shapes ({'embed.W_E': [d_model, d_vocab], ...}) as our parameters, for one layer."""
    attn = {name: weights[f"blocks.0.attn.{name}"].transpose(0, 2, 1) for name in ("W_K", "W_Q", "W_V")}
    W_O = weights["blocks.0.attn.W_O"]
    attn["W_O"] = W_O.T.reshape(n_heads, -1, W_O.shape[0])
    mlp = {name: weights[f"blocks.0.mlp.{name}"].T for name in ("W_in", "b_in", "W_out", "b_out")}
    return {
        "embed": {"W_E": weights["embed.W_E"].T},
        "pos_embed": {"W_pos": weights["pos_embed.W_pos"]},
        "blocks_0": {"attn": attn, "mlp": mlp},
        "unembed": {"W_U": weights["unembed.W_U"]},
    }
