"""The measures of spec/MEASURES.md for one network, in a slow and obvious way: numpy, float64, loops over frequencies.

It shares no code with jaxgrok.fourier and jaxgrok.measures on purpose. It uses explicit basis vectors over all p^2
pairs, explicit projections, and a plain forward pass of a one-layer transformer without LayerNorm.

Shapes: P residue, F Fourier row, N pairs (p * p), M neurons, C classes; n directions.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int


def basis(p: int) -> tuple[Float[np.ndarray, "F P"], list[str]]:
    """The orthonormal rows const, then cos and sin of each k, and their names. For even p the last row alternates."""
    x = np.arange(p)
    rows, names = [np.ones(p)], ["const"]
    for k in range(1, p // 2 + 1):
        rows.append(np.cos(2 * np.pi * k * x / p))
        names.append(f"cos {k}")
        if 2 * k < p:
            rows.append(np.sin(2 * np.pi * k * x / p))
            names.append(f"sin {k}")
    F = np.array(rows)
    return F / np.linalg.norm(F, axis=1, keepdims=True), names


def rows_of(k: int, p: int) -> list[int]:
    """The basis rows of frequency k."""
    return [2 * k - 1, 2 * k] if 2 * k < p else [2 * k - 1]


def sum_directions(k: int, p: int, sign: int = 1) -> Float[np.ndarray, "n N"]:
    """The unit vectors of cos and sin of w_k (a + sign b), from outer products of 1D rows. For k = p/2 there is one."""
    F, _ = basis(p)
    if 2 * k == p:
        return np.outer(F[-1], F[-1]).reshape(1, -1)
    c, s = F[2 * k - 1], F[2 * k]
    cos = (np.outer(c, c) - sign * np.outer(s, s)) / np.sqrt(2)
    sin = (np.outer(s, c) + sign * np.outer(c, s)) / np.sqrt(2)
    return np.array([cos.ravel(), sin.ravel()])


def block_directions(k: int, p: int) -> Float[np.ndarray, "n N"]:
    """The unit vectors {const, cos_k, sin_k} x {const, cos_k, sin_k} without const x const: 8, or 3 for k = p/2."""
    F, _ = basis(p)
    rows = [0, *rows_of(k, p)]
    return np.array([np.outer(F[i], F[j]).ravel() for i in rows for j in rows if i or j])


def project(f: Float[np.ndarray, "N ..."], directions: Float[np.ndarray, "n N"]) -> Float[np.ndarray, "N ..."]:
    """The projection of f on orthonormal directions."""
    return np.tensordot(directions.T, np.tensordot(directions, f, axes=1), axes=1)


def cross_entropy(logits: Float[np.ndarray, "N C"], targets: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """The negative log-probabilities, exact at any margin: log1p of the sum over wrong classes of exp(logit - right
    logit)."""
    right = logits[np.arange(len(targets)), targets]
    difference = logits - right[:, None]
    difference[np.arange(len(targets)), targets] = -np.inf
    top = difference.max(axis=1)
    lse = top + np.log(np.exp(difference - top[:, None]).sum(axis=1))
    return np.logaddexp(0, lse)


def forward(w: dict[str, np.ndarray], p: int, mid: Float[np.ndarray, "N D"] | None = None) -> dict[str, Any]:
    """The activations of a one-layer transformer on all pairs. w has TransformerLens shapes. `mid` replaces the stream
    after attention."""
    H, _, K = w["W_Q"].shape
    a, b = np.divmod(np.arange(p * p), p)
    tokens = np.stack([a, b, np.full_like(a, p)], axis=1)
    x = w["W_E"][tokens] + w["W_pos"]
    attn_out, patterns, scores = np.zeros(()), [], []
    for h in range(H):
        q, k, v = x[:, 2] @ w["W_Q"][h], x @ w["W_K"][h], x @ w["W_V"][h]
        score = np.einsum("nk,nsk->ns", q, k) / math.sqrt(K)
        pattern = np.exp(score - score.max(axis=1, keepdims=True))
        pattern /= pattern.sum(axis=1, keepdims=True)
        attn_out = attn_out + np.einsum("ns,nsk->nk", pattern, v) @ w["W_O"][h]
        patterns.append(pattern)
        scores.append(score)
    equals = x[:, 2]
    mid = equals + attn_out if mid is None else mid
    pre = mid @ w["W_in"] + w["b_in"]
    n = np.maximum(pre, 0)
    logits = (mid + n @ w["W_out"] + w["b_out"]) @ w["W_U"]
    return {
        "equals": equals, "attn_out": attn_out, "mid": mid, "pre": pre, "n": n, "logits": logits,
        "pattern": np.array(patterns), "score": np.array(scores),
    }  # fmt: skip


def frequency_norms(matrix: Float[np.ndarray, "P ..."]) -> Float[np.ndarray, "K"]:
    """The norms of the Fourier components of the matrix along its first axis, for each frequency."""
    p = len(matrix)
    F, _ = basis(p)
    return np.array([np.linalg.norm(F[rows_of(k, p)] @ matrix) for k in range(1, p // 2 + 1)])


def gini(x: Float[np.ndarray, "n"]) -> float:
    """The Gini coefficient."""
    x = np.sort(x)
    n = len(x)
    return 2 * (np.arange(1, n + 1) * x).sum() / (n * x.sum()) - (n + 1) / n


def neuron_fits(
    n: Float[np.ndarray, "N M"], p: int
) -> tuple[Int[np.ndarray, "M"], Float[np.ndarray, "M"], Float[np.ndarray, "N M"]]:
    """For every neuron: its best frequency, the share of that in its centred energy, and its mean plus best block."""
    centred = n - n.mean(axis=0)
    total = (centred**2).sum(axis=0)
    energy = np.array([((block_directions(k, p) @ n) ** 2).sum(axis=0) for k in range(1, p // 2 + 1)])
    best = energy.argmax(axis=0) + 1
    fve = np.where(total > 0, energy.max(axis=0) / np.where(total > 0, total, 1), 0)
    fit = np.empty_like(n)
    for j, k in enumerate(best):
        fit[:, j] = n[:, j].mean() + project(n[:, j], block_directions(k, p))
    return best, fve, fit


def key_frequencies(
    W_L: Float[np.ndarray, "P M"],
    W_E: Float[np.ndarray, "P D"],
    best: Int[np.ndarray, "M"],
    fve: Float[np.ndarray, "M"],
) -> dict[str, list[int]]:
    """The three rules and the key set of MEASURES.md, as lists of frequencies."""
    p = len(W_L)
    norms_L, norms_E = frequency_norms(W_L), frequency_norms(W_E)
    ks = range(1, p // 2 + 1)
    rule_L = [k for k in ks if norms_L[k - 1] >= norms_L.max() / 4]
    rule_E = [k for k in ks if norms_E[k - 1] >= norms_E.max() / 4]
    neurons = [k for k in ks if ((best == k) & (fve > 0.85)).any()]
    keys = [k for k in rule_L if norms_L[k - 1] >= 3 * np.median(norms_L) or k in neurons]
    return {"W_L": rule_L, "W_E": rule_E, "neurons": neurons, "keys": keys}


def logit_measures(
    L: Float[np.ndarray, "N P"], train: Int[np.ndarray, "n_train"], keys: list[int], sign: int = 1
) -> dict[str, Any]:
    """The measures that need only the logits. train holds pair numbers. The targets are (a + sign b) mod p."""
    p = L.shape[1]
    a, b = np.divmod(np.arange(p * p), p)
    targets = (a + sign * b) % p
    is_train = np.isin(np.arange(p * p), train)

    def losses(logits):
        ce = cross_entropy(logits, targets)
        return {"all": ce.mean(), "train": ce[is_train].mean(), "test": ce[~is_train].mean()}

    def P(f, ks):
        return sum((project(f, sum_directions(k, p, sign)) for k in ks), np.zeros(()))

    single = [losses(L - P(L, [k]))["train"] for k in range(1, p // 2 + 1)]
    waves = {k: np.cos(2 * np.pi * k * (targets[:, None] - np.arange(p)) / p) for k in keys}
    centred = L - L.mean()
    columns = np.stack([waves[k].ravel() for k in keys], axis=1)
    alpha, *_ = np.linalg.lstsq(columns, centred.ravel(), rcond=None)
    fitted = (columns @ alpha).reshape(L.shape)
    blocks = L.mean(axis=0) + sum(project(L, block_directions(k, p)) for k in keys)
    excluded = losses(L - P(L, keys))
    return {
        "accuracy": (L.argmax(axis=1) == targets).mean(),
        "loss": losses(L),
        "restricted_loss": losses(P(L, keys) + L.mean(axis=0)),
        "excluded_loss": {"train": excluded["train"], "all": excluded["all"]},
        "excluded_loss_per_key": {str(k): single[k - 1] for k in keys},
        "excluded_loss_max_over_frequencies": max(single),
        "alpha": {str(k): x for k, x in zip(keys, alpha, strict=True)},
        "logit_fve": 1 - ((centred - fitted) ** 2).sum() / (centred**2).sum(),
        "logit_approximation_loss": losses(fitted)["all"],
        "keep_key_blocks": losses(blocks)["all"],
    }


def everything(
    w: dict[str, np.ndarray], p: int, train: Int[np.ndarray, "n_train"], keys: list[int] | None = None, sign: int = 1
) -> dict[str, Any]:
    """Every measure of one network, as a dictionary with the structure of the reference JSON.

    w holds float64 arrays in TransformerLens shapes. keys None means the keys that the rules find."""
    full = forward(w, p)
    targets = (np.arange(p * p) // p + sign * (np.arange(p * p) % p)) % p
    is_train = np.isin(np.arange(p * p), train)
    F, names = basis(p)
    n, mid, W_U = full["n"], full["mid"], w["W_U"][:, :p]
    W_L = (w["W_out"] @ W_U).T
    W_E = w["W_E"][:p]
    L = full["logits"][:, :p]
    best, fve, fit = neuron_fits(n, p)
    rules = key_frequencies(W_L, W_E, best, fve)
    if keys is not None:
        rules["keys"] = keys
    keys = rules["keys"]
    key_rows = [r for k in keys for r in rows_of(k, p)]
    FW = F @ W_L

    def logits(n=n, mid=mid):
        return mid @ W_U + (n @ w["W_out"] + w["b_out"]) @ W_U

    def loss(logits):
        return cross_entropy(logits, targets).mean()

    readout = {}
    for k in keys:
        for r, direction in zip(rows_of(k, p), sum_directions(k, p, sign), strict=True):
            u = n @ FW[r]
            readout[names[r]] = (direction @ u) ** 2 / ((u - u.mean()) ** 2).sum()
    Q, _ = np.linalg.qr(FW[key_rows].T)
    clustered = np.where(fve > 0.85, fit, n)
    of_logits = logit_measures(L, train, keys, sign)
    ce_all = cross_entropy(full["logits"].copy(), targets)
    scores = {}
    for h, score in enumerate(full["score"]):
        f = (score[:, 0] - score[:, 1]).reshape(p, p).mean(axis=1)
        f = f - f.mean()
        energy = [((F[rows_of(k, p)] @ f) ** 2).sum() for k in range(1, p // 2 + 1)]
        scores[str(h)] = {"frequency": int(np.argmax(energy)) + 1, "fve": max(energy) / (f**2).sum()}
    out = {
        "loss_all_classes": {"train": ce_all[is_train].mean(), "test": ce_all[~is_train].mean(), "all": ce_all.mean()},
        "W_E_frequency_norms": frequency_norms(W_E).tolist(),
        "W_L_frequency_norms": frequency_norms(W_L).tolist(),
        "neuron_clusters": {str(k): int(((best == k) & (fve > 0.85)).sum()) for k in sorted(set(best[fve > 0.85]))},
        "neurons_unclustered": int((fve <= 0.85).sum()),
        "neurons_always_active": int((full["pre"] > 0).all(axis=0).sum()),
        "neurons_never_active": int((full["pre"] <= 0).all(axis=0).sum()),
        "neuron_fve_median": np.median(fve),
        "key_frequencies": rules,
        "W_L_residual": np.linalg.norm(np.delete(FW, key_rows, axis=0)) / np.linalg.norm(FW),
        "mlp_readout_fve": readout,
        "gini": {name: gini(np.linalg.norm(F @ x, axis=1)) for name, x in (("W_E", W_E), ("W_L", W_L))},
        "ablation_loss": {
            "keep_key_blocks": of_logits.pop("keep_key_blocks"),
            "remove_key_from_neurons": {str(k): loss(logits(n - project(n, block_directions(k, p)))) for k in keys},
            "clustered_neurons_as_polynomials": loss(logits(clustered)),
            "mlp_on_W_L_key_directions": loss(logits(n @ Q @ Q.T)),
            "mlp_on_their_null_space": loss(logits(n - n @ Q @ Q.T)),
            "mlp_skip_zero": loss(logits(mid=np.zeros_like(mid))),
            "mlp_skip_mean": loss(logits(mid=np.broadcast_to(mid.mean(axis=0), mid.shape))),
            "attention_zero": loss(forward(w, p, full["equals"])["logits"][:, :p]),
            "attention_skip_zero": loss(forward(w, p, full["attn_out"])["logits"][:, :p]),
        },
        "attention_to_equals_mean": full["pattern"][:, :, 2].mean(axis=1).tolist(),
        "attention_score_frequency": scores,
    }
    return out | of_logits
