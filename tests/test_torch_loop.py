"""The PyTorch loop that the benchmark compares with does what ours does: the same losses from the same weights."""

import numpy as np
import pytest

from jaxgrok import fourier
from jaxgrok.config import Config
from jaxgrok.tasks import make_task
from jaxgrok.training import train
from tests.reference import plain

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")


def test_it_trains_as_ours_does():
    from tests.reference.torch_loop import Loop, Net

    config = Config(p=11, d_model=16, dtype="float64", loss="float64")
    torch.manual_seed(0)
    net = Net(12, d_model=16, d_mlp=64).to(torch.float64)
    where = {"W_E": "embed", "W_pos": "pos_embed", "W_U": "unembed"}
    weights = {}
    for name, weight in net.named_parameters():
        place = where.get(name, "blocks.0.mlp" if name[2:] in ("in", "out") else "blocks.0.attn")
        weights[f"{place}.{name}"] = weight.detach().numpy().copy()
    parts = make_task(config).split(0.5, 3)
    loop = Loop(net, *[(part.tokens, part.targets[:, 0]) for part in parts])
    theirs = np.array([loop.epoch() for _ in range(40)])
    _, ours = train(config, params=plain.from_authors(weights, 4), seed=3, frac=0.5, epochs=40, eval_every=1)
    # float64 rounding along 40 steps
    np.testing.assert_allclose(ours.train_loss, theirs[:, 0], rtol=1e-11)
    np.testing.assert_allclose(ours.test_loss, theirs[:, 1], rtol=1e-11)


def test_the_search_for_frequencies_agrees_with_ours():
    p = 13
    rng = np.random.default_rng(0)
    a, b = np.divmod(np.arange(p * p), p)
    waves = [np.cos(2 * np.pi * k * a / p + 1) * np.cos(2 * np.pi * k * b / p) for k in (1, 3, 5, 2)]
    neurons = (np.stack(waves, axis=1) + 0.3 * rng.normal(size=(p * p, 4))).astype(np.float32)
    from tests.reference.torch_loop import best_frequencies

    frequencies, shares = best_frequencies(torch.from_numpy(neurons), p)
    fits = fourier.fit_neurons(fourier.neuron_blocks(neurons.reshape(p, p, 4)))
    assert frequencies == (np.asarray(fits.index) + 1).tolist() == [1, 3, 5, 2]
    np.testing.assert_allclose(shares, fits.fve, rtol=1e-4)
