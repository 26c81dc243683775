"""The authors' loops as released, in plain PyTorch. Slow on purpose; scripts/benchmark.py times them.

Training: every position through every layer, the graph kept for the test loss, float64 log_softmax, one full-batch AdamW
step an epoch. The search for each neuron's frequency: neuron by neuron, frequency by frequency.

Our own code; names and shapes are the authors' (W_E [d_model, d_vocab], W_K [heads, d_head, d_model], ...).
"""

import math

import torch
from torch import nn


class Net(nn.Module):
    """One transformer block on [x, y, "="], as in spec: PUBLISHED.md."""

    def __init__(self, d_vocab, n_ctx=3, d_model=128, n_heads=4, d_mlp=512):
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

    def forward(self, tokens):
        """tokens [N, S] -> logits [N, S, d_vocab]."""
        x = self.W_E.T[tokens] + self.W_pos
        k, q, v = (torch.einsum("ihd,bpd->biph", W, x) for W in (self.W_K, self.W_Q, self.W_V))
        scores = torch.einsum("biph,biqh->biqp", k, q) / math.sqrt(self.d_head)
        pattern = torch.softmax(scores - 1e10 * (1 - self.mask), dim=-1)
        z = torch.einsum("biph,biqp->biqh", v, pattern)
        z = z.transpose(1, 2).reshape(*tokens.shape, -1)
        x = x + torch.einsum("df,bqf->bqd", self.W_O, z)
        hidden = torch.relu(torch.einsum("md,bpd->bpm", self.W_in, x) + self.b_in)
        x = x + torch.einsum("dm,bpm->bpd", self.W_out, hidden) + self.b_out
        return x @ self.W_U


def loss(net, tokens, targets):
    """Mean cross-entropy at the last position, in float64."""
    log_probs = torch.log_softmax(net(tokens)[:, -1].to(torch.float64), dim=-1)
    return -log_probs.gather(1, targets[:, None]).mean()


class Loop:
    """The released loop: `epoch()` computes train and test loss, both with their graphs, and takes one step."""

    def __init__(self, net, train, test, lr=1e-3, weight_decay=1.0):
        self.net = net
        self.train, self.test = ([torch.as_tensor(x, dtype=torch.long) for x in part] for part in (train, test))
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(step / 10, 1))

    def epoch(self) -> tuple[float, float]:
        train_loss, test_loss = loss(self.net, *self.train), loss(self.net, *self.test)
        train_loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return train_loss.item(), test_loss.item()


def best_frequencies(neurons, p):
    """For each neuron of [p * p, M] its best frequency and the share of its centred energy in that 3x3 block, lists of M.

    As released, the loop over frequencies stops one short of p // 2.
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
