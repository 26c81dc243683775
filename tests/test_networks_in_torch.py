"""The loss and the gradients of every kind of network beside PyTorch's, in float64."""

import jax
import numpy as np
import pytest

from jaxgrok.config import Config
from jaxgrok.nets.loss import cross_entropy
from jaxgrok.nets.model import make_model
from jaxgrok.tasks import make_config, make_task

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")

KINDS = [
    {},
    {"act": "gelu", "n_layers": 2},
    {"act": "square", "residual_factor": 2.0},
    {"norm": "layernorm"},
    {"norm": "rmsnorm", "n_layers": 2, "tied": "yes"},
    {"norm": "layernorm", "arch": "attn_only", "n_layers": 2},
    {"attn_coeff": 0.3},
    {"attn_coeff": 0.0, "attention": "full", "sequence": "xy"},
    {"tied": "yes"},
    {"task": "s3_conjugate"},
    {"task": "add+subtract"},
    {"task": "parity2", "seq_len": 6},
    {"task": "addition2"},
    {"task": "induction", "seq_len": 13, "repeat_len": 3, "n_tokens": 9, "residual_factor": 2.0},
]


@pytest.mark.parametrize("fields", KINDS, ids=lambda fields: "-".join(map(str, fields.values())) or "mainline")
def test_loss_and_gradients_are_torchs(fields, rng):
    from tests.reference.torch_network import logits as in_torch

    sizes = {"p": 7, "d_model": 12, "n_heads": 3, "dtype": "float64", "loss": "float64"}
    config: Config = make_config(**{**sizes, **fields})
    task = make_task(config)
    examples = task.split(0.6 if config.listed else 20, 0)[0]
    model = make_model(config, task)
    shapes = jax.eval_shape(model.init, jax.random.key(0), examples.tokens)["params"]
    params = jax.tree.map(lambda x: rng.normal(size=x.shape) / 2, shapes)

    def loss(params):
        logits, _ = model.forward(model.prepare(params, len(examples.tokens)), examples.tokens)
        return cross_entropy(logits, examples.targets, "float64").mean()

    ours, gradients = jax.jit(jax.value_and_grad(loss))(params)
    weights = jax.tree.map(lambda x: torch.tensor(x, requires_grad=True), params)
    start, stop = task.read
    scores = in_torch(config, weights, torch.tensor(np.asarray(examples.tokens), dtype=torch.long))[:, start:stop]
    targets = torch.tensor(np.asarray(examples.targets), dtype=torch.long)
    theirs = torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-11)
    flat = jax.tree.leaves_with_path(gradients)
    for (path, gradient), weight in zip(flat, jax.tree.leaves(weights), strict=True):
        expected = np.zeros(weight.shape) if weight.grad is None else weight.grad.numpy()
        np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-12, err_msg=str(path))
