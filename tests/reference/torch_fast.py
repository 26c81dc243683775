"""PyTorch as a good engineer would write the mainline: queries, MLP and logits at the last position alone, every run at
once by torch.func, compiled. scripts/benchmark.py times it. The code is our own.

Shapes: R runs, N examples, S positions.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from jaxgrok.config import Config
from tests.reference.others import initial_weights, splits


def loss(w: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of one run at the last position."""
    x = w["W_E"][tokens] + w["W_pos"]
    H, D, K = w["W_Q"].shape

    def flat(name: str) -> Tensor:
        return w[name].permute(1, 0, 2).reshape(D, H * K)

    last, n = x[:, -1], len(x)
    q = (last @ flat("W_Q")).view(n, H, 1, K)
    k, v = ((x @ flat(name)).view(n, -1, H, K).transpose(1, 2) for name in ("W_K", "W_V"))
    pattern = torch.softmax((q * k).sum(-1) / math.sqrt(K), dim=-1)
    z = (pattern[..., None] * v).sum(2).reshape(n, H * K)
    mid = last + z @ w["W_O"].reshape(H * K, D)
    out = mid + torch.relu(mid @ w["W_in"] + w["b_in"]) @ w["W_out"] + w["b_out"]
    return F.cross_entropy(out @ w["W_U"], targets)


class FastTorch:
    """R runs at once. `epochs(n)` trains n epochs; returns the train losses [n, R] before each step, and the last test
    losses [R] if they are asked for at every epoch."""

    def __init__(self, config: Config, runs: int, with_test: bool, compiled: bool = True, device: str = "cpu"):
        self.weights = {name: torch.from_numpy(x).to(device) for name, x in initial_weights(config, runs).items()}
        (train, test) = [[torch.from_numpy(x).long().to(device) for x in part] for part in splits(config, runs)]
        self.train, self.test, self.with_test = train, test, with_test
        slope = torch.func.vmap(torch.func.grad_and_value(loss))
        tested = torch.func.vmap(loss)
        self.slope, self.tested = (torch.compile(f) if compiled else f for f in (slope, tested))
        options = {"lr": 1e-3, "betas": (0.9, 0.98), "weight_decay": 1.0}
        self.optimizer = torch.optim.AdamW(list(self.weights.values()), **options)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(step / 10, 1))

    def epochs(self, n: int) -> tuple[Tensor, Tensor | None]:
        train_losses, test_loss = [], None
        for _ in range(n):
            if self.with_test:
                with torch.no_grad():
                    test_loss = self.tested(self.weights, *self.test)
            slopes, train_loss = self.slope(self.weights, *self.train)
            for name, weight in self.weights.items():
                weight.grad = slopes[name]
            self.optimizer.step()
            self.scheduler.step()
            train_losses.append(train_loss)
        return torch.stack(train_losses), test_loss
