"""The authors' loops as released, in plain PyTorch. They are slow on purpose; scripts/benchmark.py times them.

Training sends every position through every layer, keeps the graph of the test loss too, takes log_softmax in float64,
and takes one full-batch AdamW step an epoch. On sequences it takes one step on each fresh batch. The search for each
neuron's frequency goes neuron by neuron and frequency by frequency.

The code is our own. Names and shapes are the authors' (W_E [d_model, d_vocab], W_K [heads, d_head, d_model], ...).
Shapes: N examples, S positions, Q read positions, V vocabulary, D residual, H heads, K head width, M neurons.
"""

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Batch = tuple[Int[Tensor, "N S"], Int[Tensor, "N Q"], Bool[Tensor, "N Q"]]  # tokens, targets, which targets count


class Net(nn.Module):
    """One transformer block on [x, y, "="] (spec: PUBLISHED.md)."""

    mask: Tensor

    def __init__(self, d_vocab: int, n_ctx: int = 3, d_model: int = 128, n_heads: int = 4, d_mlp: int = 512):
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_model // n_heads

        def weight(*shape, scale=d_model):
            return nn.Parameter(torch.randn(*shape) / math.sqrt(scale))

        self.W_E, self.W_pos = weight(d_model, d_vocab), weight(n_ctx, d_model)
        self.W_K, self.W_Q, self.W_V = (weight(n_heads, self.d_head, d_model) for _ in range(3))
        self.W_O = weight(d_model, d_model)
        self.W_in, self.W_out = weight(d_mlp, d_model), weight(d_model, d_mlp)
        self.b_in, self.b_out = nn.Parameter(torch.zeros(d_mlp)), nn.Parameter(torch.zeros(d_model))
        self.W_U = weight(d_model, d_vocab, scale=d_vocab)
        self.register_buffer("mask", torch.tril(torch.ones(n_ctx, n_ctx)))

    def forward(self, tokens: Int[Tensor, "N S"]) -> Float[Tensor, "N S V"]:
        """The logits at every position."""
        x = self.W_E.T[tokens] + self.W_pos
        z = attention(x, self.mask, self.W_K, self.W_Q, self.W_V)
        x = x + torch.einsum("df,bqf->bqd", self.W_O, z.transpose(1, 2).reshape(*tokens.shape, -1))
        x = x + mlp(x, self.W_in, self.b_in, self.W_out, self.b_out)
        return x @ self.W_U


class SequenceNet(nn.Module):
    """The later version of the network, for sequences.

    It may have several blocks, with or without MLP. W_O has an axis of heads, and the output may have other classes
    than the input. Every sublayer returns residual_factor * x + sublayer(x). Parameters have the authors' names
    (`blocks.0.attn.W_Q`).
    """

    mask: Tensor

    def __init__(
        self,
        d_vocab: int,
        d_vocab_out: int,
        n_ctx: int,
        n_layers: int = 1,
        d_model: int = 128,
        n_heads: int = 4,
        attn_only: bool = False,
        residual_factor: float = 1,
    ):
        super().__init__()
        d_head, d_mlp = d_model // n_heads, 4 * d_model
        self.residual_factor = residual_factor

        def weight(*shape, scale=d_model):
            return nn.Parameter(torch.randn(*shape) / math.sqrt(scale))

        self.embed = nn.ParameterDict({"W_E": weight(d_model, d_vocab)})
        self.pos_embed = nn.ParameterDict({"W_pos": weight(n_ctx, d_model)})
        self.blocks = nn.ModuleList()
        for _ in range(n_layers):
            attn = {name: weight(n_heads, d_head, d_model) for name in ("W_K", "W_Q", "W_V")}
            block = nn.ModuleDict({"attn": nn.ParameterDict(attn | {"W_O": weight(n_heads, d_model, d_head)})})
            if not attn_only:
                into = {"W_in": weight(d_mlp, d_model), "b_in": torch.zeros(d_mlp)}
                out = {"W_out": weight(d_model, d_mlp), "b_out": torch.zeros(d_model)}
                block["mlp"] = nn.ParameterDict(into | out)
            self.blocks.append(block)
        self.unembed = nn.ParameterDict({"W_U": weight(d_model, d_vocab_out, scale=d_vocab_out)})
        self.register_buffer("mask", torch.tril(torch.ones(n_ctx, n_ctx)))

    def forward(self, tokens: Int[Tensor, "N S"]) -> Float[Tensor, "N S V"]:
        """The logits at every position."""
        S = tokens.shape[1]
        x = self.embed["W_E"].T[tokens] + self.pos_embed["W_pos"][:S]
        for block in cast(Iterable[nn.ModuleDict], self.blocks):
            attn = cast(nn.ParameterDict, block["attn"])
            z = attention(x, self.mask[:S, :S], attn["W_K"], attn["W_Q"], attn["W_V"])
            x = self.residual_factor * x + torch.einsum("idh,biqh->bqd", attn["W_O"], z)
            if "mlp" in block:
                x = self.residual_factor * x + mlp(x, **cast(nn.ParameterDict, block["mlp"]))
        return x @ self.unembed["W_U"]


def attention(
    x: Float[Tensor, "N S D"],
    mask: Float[Tensor, "S S"],
    W_K: Float[Tensor, "H K D"],
    W_Q: Float[Tensor, "H K D"],
    W_V: Float[Tensor, "H K D"],
) -> Float[Tensor, "N H S K"]:
    """The values that each head reads."""
    k, q, v = (torch.einsum("ihd,bpd->biph", W, x) for W in (W_K, W_Q, W_V))
    scores = torch.einsum("biph,biqh->biqp", k, q) / math.sqrt(k.shape[-1])
    pattern = torch.softmax(scores - 1e10 * (1 - mask), dim=-1)
    return torch.einsum("biph,biqp->biqh", v, pattern)


def mlp(
    x: Float[Tensor, "N S D"],
    W_in: Float[Tensor, "M D"],
    b_in: Float[Tensor, "M"],
    W_out: Float[Tensor, "D M"],
    b_out: Float[Tensor, "D"],
) -> Float[Tensor, "N S D"]:
    """The output of the MLP."""
    hidden = torch.relu(torch.einsum("md,bpd->bpm", W_in, x) + b_in)
    return torch.einsum("dm,bpm->bpd", W_out, hidden) + b_out


def loss(net: nn.Module, tokens: Int[Tensor, "N S"], targets: Int[Tensor, "N"]) -> Float[Tensor, ""]:
    """The mean cross-entropy at the last position, in float64."""
    log_probs = torch.log_softmax(net(tokens)[:, -1].to(torch.float64), dim=-1)
    return -log_probs.gather(1, targets[:, None]).mean()


class Loop:
    """The released loop. `train` and `test` are (tokens, targets)."""

    def __init__(self, net: nn.Module, train: Sequence, test: Sequence, lr: float = 1e-3, weight_decay: float = 1.0):
        self.net = net
        self.train, self.test = ([torch.as_tensor(x, dtype=torch.long) for x in part] for part in (train, test))
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(step / 10, 1))

    def epoch(self) -> tuple[float, float]:
        """Compute train and test loss, both with their graphs, and take one step. Returns the losses before it."""
        train_loss, test_loss = loss(self.net, *self.train), loss(self.net, *self.test)
        train_loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return train_loss.item(), test_loss.item()


class SequenceLoop:
    """The loop on sequences. It reads the logits at the positions `read`, a half-open range."""

    def __init__(
        self,
        net: nn.Module,
        read: tuple[int, int],
        lr: float = 1e-3,
        weight_decay: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.98),
    ):
        self.net, self.read = net, slice(*read)
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay, betas=betas)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(step / 10, 1))

    def step(self, tokens: Int[Tensor, "N S"], targets: Int[Tensor, "N Q"], counts: Bool[Tensor, "N Q"]) -> float:
        """Take one AdamW step on the mean loss of the targets that count. Returns the loss before the step."""
        log_probs = torch.log_softmax(self.net(tokens)[:, self.read].to(torch.float64), dim=-1)
        loss = -log_probs.gather(2, targets[..., None])[..., 0][counts].mean()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return loss.item()


def addition_batch(n: int, digits: int = 5) -> Batch:
    """n sums x + y = z, most significant digit first. With 2 digits, for instance, 3 7 + 8 5 = 1 2 2.

    "+" is token 10 and "=" is token 11. The read positions start at "=", from 2 digits + 1 to 3 digits + 1.
    """
    x, y = (torch.randint(0, 10, (n, digits)) for _ in range(2))
    z, carry = torch.zeros(n, digits + 1, dtype=torch.long), torch.zeros(n, dtype=torch.long)
    for i in range(digits - 1, -1, -1):
        total = x[:, i] + y[:, i] + carry
        z[:, i + 1], carry = total % 10, total // 10
    z[:, 0] = carry
    plus, equals = (torch.full((n, 1), token) for token in (10, 11))
    return torch.cat([x, plus, y, equals, z], dim=1), z, torch.ones_like(z, dtype=torch.bool)


def induction_batch(n: int, seq_len: int = 85, repeat_len: int = 16, n_repeats: int = 3, n_tokens: int = 128) -> Batch:
    """n random sequences with a repeated stretch, read at every position but the last.

    A sequence is token 0, then n_repeats blocks of random tokens 1 to n_tokens - 1. Each block has one copy of the
    stretch at an offset of its own. All tokens of each copy after the first count, except the copy's first token.
    """
    block = (seq_len - 1) // n_repeats
    tokens = torch.randint(1, n_tokens, (n, seq_len))
    tokens[:, 0] = 0
    stretch = torch.randint(1, n_tokens, (n, repeat_len))
    counts = torch.zeros(n, seq_len, dtype=torch.bool)
    rows = torch.arange(n)[:, None]
    for repeat in range(n_repeats):
        offset = torch.randint(0, block - repeat_len + 1, (n, 1))
        positions = 1 + repeat * block + offset + torch.arange(repeat_len)
        tokens[rows, positions] = stretch
        counts[rows, positions[:, 1:]] = repeat > 0
    return tokens, tokens[:, 1:], counts[:, 1:]


def skip_trigram_batch(n: int, entries: int = 11) -> Batch:
    """n sequences of START = 20, then entries of 0..9 except one of 10..19, then END = 21.

    The target is that one entry minus 10, read at the last position.
    """
    target = torch.randint(0, 10, (n, 1))
    body = torch.randint(0, 10, (n, entries))
    body.scatter_(1, torch.randint(0, entries, (n, 1)), target + 10)
    start, end = (torch.full((n, 1), token) for token in (20, 21))
    return torch.cat([start, body, end], dim=1), target, torch.ones_like(target, dtype=torch.bool)


def best_frequencies(neurons: Float[Tensor, "P*P M"], p: int) -> tuple[list[int], list[float]]:
    """The best frequency of each neuron, and the share of its centred energy in that frequency's 3x3 block.

    As in the released code, the loop over frequencies stops one short of p // 2.
    """
    x = torch.arange(p)
    rows = [torch.ones(p)]
    for k in range(1, p // 2 + 1):
        rows += [torch.cos(2 * math.pi * x * k / p), torch.sin(2 * math.pi * x * k / p)]
    basis = torch.stack([row / row.norm() for row in rows])
    centred = neurons - neurons.mean(0, keepdim=True)
    components = torch.einsum("xyn,fx,Fy->fFn", centred.reshape(p, p, -1), basis, basis)
    frequencies, shares = [], []
    for neuron in range(neurons.shape[1]):
        best_share, best_frequency = -1e6, -1
        for k in range(1, p // 2):
            index = [0, 2 * k - 1, 2 * k]
            block = components[[[i] * 3 for i in index], [index] * 3, neuron]
            share = (block.pow(2).sum() / components[..., neuron].pow(2).sum()).item()
            if share > best_share:
                best_share, best_frequency = share, k
        frequencies.append(best_frequency)
        shares.append(best_share)
    return frequencies, shares
