"""The programs that the benchmark compares with do what ours does: the same losses from the same weights."""

import jax
import numpy as np
import pytest

from jaxgrok.config import Config
from jaxgrok.training.run import train
from tests.reference import others

SMALL = Config(p=11, d_model=16, n_heads=4)
RUNS, EPOCHS = 2, 30


@pytest.fixture(scope="module")
def ours():
    """The train and test losses of our own float32 runs from their weights."""
    weights = others.initial_weights(SMALL, RUNS)
    curves = []
    for seed in range(RUNS):
        w = {name: x[seed] for name, x in weights.items()}
        attn = {name: w[name] for name in ("W_Q", "W_K", "W_V", "W_O")}
        of_mlp = {name: w[name] for name in ("W_in", "b_in", "W_out", "b_out")}
        params = {"embed": {"W_E": w["W_E"]}, "pos_embed": {"W_pos": w["W_pos"]}, "unembed": {"W_U": w["W_U"]}}
        params["blocks_0"] = {"attn": attn, "mlp": of_mlp}
        curves.append(train(SMALL, params=params, seed=seed, frac=0.3, epochs=EPOCHS, eval_every=1)[1])
    return curves


# float32 rounding along 30 steps
CLOSE = {"rtol": 2e-4}


def test_plain_jax_trains_as_ours_does(ours):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        train_loss, _ = others.PlainJax(SMALL, RUNS, with_test=True).epochs(EPOCHS)
    for row, curves in zip(train_loss, ours, strict=True):
        np.testing.assert_allclose(row, curves.train_loss, **CLOSE)


def test_fast_torch_trains_as_ours_does(ours):
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    from tests.reference.torch_fast import FastTorch

    train_loss, test_loss = FastTorch(SMALL, RUNS, with_test=True, compiled=False).epochs(EPOCHS)
    for row, curves in enumerate(ours):
        np.testing.assert_allclose(train_loss.detach().numpy()[:, row], curves.train_loss, **CLOSE)
        np.testing.assert_allclose(test_loss.numpy()[row], curves.test_loss[-1], **CLOSE)


def test_the_nnx_program_memorises():
    """It has no biases and weights of its own, so its losses are not ours: they begin near chance, and fall."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        train_loss, test_loss = others.Nnx(SMALL).epochs(200)
    assert train_loss.shape == test_loss.shape == (200,)
    assert abs(float(train_loss[0]) - np.log(11)) < 1
    assert float(train_loss[-1]) < 0.5 < float(test_loss[-1])
