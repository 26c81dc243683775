"""The PyTorch loop that the benchmark compares with does what ours does: the same losses from the same weights."""

import numpy as np
import pytest

from jaxgrok.config import Config
from jaxgrok.measures import fourier
from jaxgrok.tasks import make_task
from jaxgrok.training.run import train
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


def as_numpy(net):
    return {name: weight.detach().numpy().copy() for name, weight in net.named_parameters()}


def sequence_net(seed=0, **fields):
    """A small network in float64 with no zero biases: one that is forgotten is seen."""
    from tests.reference.torch_loop import SequenceNet

    torch.manual_seed(seed)
    net = SequenceNet(**{"d_vocab": 12, "d_vocab_out": 7, "n_ctx": 9, "d_model": 12, "n_heads": 3, **fields}).to(
        torch.float64
    )
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return net


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n_layers": 2},
        {"n_layers": 2, "attn_only": True, "residual_factor": 2},
        {"n_layers": 2, "residual_factor": 3},
    ],
)
@pytest.mark.parametrize("length", [9, 5])
def test_the_network_on_sequences_is_the_plain_one(fields, length, rng):
    net = sequence_net(**fields)
    tokens = rng.integers(12, size=(20, length))
    expected, _ = plain.transformer(
        plain.from_authors(as_numpy(net), 3), tokens, residual_factor=fields.get("residual_factor", 1)
    )
    logits = net(torch.from_numpy(tokens)).detach().numpy()
    # float64 sums in another order; logits reach some hundreds where the residual stream is tripled
    np.testing.assert_allclose(logits, expected, rtol=1e-11, atol=1e-11)


def test_both_of_the_authors_layouts_give_the_same_parameters():
    weights = as_numpy(sequence_net(n_layers=2, attn_only=True))
    older = {name.replace("blocks", "attn_blocks"): weight for name, weight in weights.items()}
    for name in ("attn_blocks.0.attn.W_O", "attn_blocks.1.attn.W_O"):
        older[name] = np.concatenate(list(older[name]), axis=1)  # heads side by side
    older["attn_blocks.0.attn.mask"] = np.ones((9, 9))
    expected, found = plain.from_authors(weights, 3), plain.from_authors(older, 3)
    assert set(found) == set(expected) == {"embed", "pos_embed", "blocks_0", "blocks_1", "unembed"}
    for block in ("blocks_0", "blocks_1"):
        assert set(found[block]) == {"attn"}
        for name, weight in expected[block]["attn"].items():
            np.testing.assert_array_equal(found[block]["attn"][name], weight)


@pytest.mark.parametrize("digits", [1, 2, 5])
def test_the_batches_of_sums_are_sums(digits):
    from tests.reference.torch_loop import addition_batch

    torch.manual_seed(0)
    tokens, targets, counts = (x.numpy() for x in addition_batch(400, digits))
    assert counts.shape == targets.shape == (400, digits + 1)
    assert counts.all()
    np.testing.assert_array_equal(targets, tokens[:, 2 * digits + 2 :])  # read one before each
    for row in tokens:
        x, y, z = "".join("0123456789+="[token] for token in row).replace("=", "+").split("+")
        assert (len(x), len(y), len(z)) == (digits, digits, digits + 1)
        assert int(x) + int(y) == int(z)
    operands = np.delete(tokens[:, : 2 * digits + 1], digits, axis=1)
    # 400 draws of a uniform digit have 40 of each, give or take 6
    assert all((abs(np.bincount(column, minlength=10) - 40) < 30).all() for column in operands.T)


def test_the_batches_of_repeats_repeat():
    from tests.reference.torch_loop import induction_batch

    torch.manual_seed(0)
    tokens, targets, counts = (x.numpy() for x in induction_batch(400))
    assert tokens.shape == (400, 85)
    assert (tokens[:, 0] == 0).all()
    assert set(tokens[:, 1:].ravel()) == set(range(1, 128))
    np.testing.assert_array_equal(targets, tokens[:, 1:])
    offsets = []
    for row, counted in zip(tokens, counts):
        text = row.tolist()
        first, second = (np.flatnonzero(counted) + 1).reshape(2, 15)  # positions of the counted tokens
        copy = text[first[0] - 1 : first[-1] + 1]
        np.testing.assert_array_equal(first, np.arange(first[0], first[0] + 15))
        np.testing.assert_array_equal(second, np.arange(second[0], second[0] + 15))
        assert text[second[0] - 1 : second[-1] + 1] == copy
        before = [start for start in range(13) if text[1 + start : 17 + start] == copy]
        assert len(before) == 1
        offsets.append((*before, first[0] - 30, second[0] - 58))
    offsets = np.array(offsets)
    assert all(set(column) == set(range(13)) for column in offsets.T)
    # Independent of one another: a correlation of 400 pairs has a standard error of 0.05.
    assert (abs(np.corrcoef(offsets.T) - np.eye(3)) < 0.25).all()


@pytest.mark.parametrize("entries", [11, 3])
def test_the_batches_of_skip_trigrams_have_one_large_entry(entries):
    from tests.reference.torch_loop import skip_trigram_batch

    torch.manual_seed(0)
    tokens, targets, counts = (x.numpy() for x in skip_trigram_batch(400, entries))
    assert tokens.shape == (400, entries + 2)
    assert counts.shape == targets.shape == (400, 1)
    assert counts.all()
    assert set(tokens[:, 0]) == {20}
    assert set(tokens[:, -1]) == {21}
    body = tokens[:, 1:-1]
    assert set(body.ravel()) == set(range(20))
    for row, target in zip(body, targets):
        assert [token - 10 for token in row if token >= 10] == target.tolist()
    assert set(np.argmax(body, axis=1)) == set(range(entries))
    assert set(targets.ravel()) == set(range(10))


def test_a_step_on_sequences_is_adamw_on_the_targets_that_count(rng):
    from tests.reference.torch_loop import SequenceLoop, induction_batch

    net, again = (
        sequence_net(n_ctx=13, d_vocab_out=12, attn_only=True, n_layers=2, residual_factor=2) for _ in range(2)
    )
    loop = SequenceLoop(net, (0, 12), lr=1e-2, weight_decay=0.5, betas=(0.9, 0.999))
    moments = {name: [torch.zeros_like(weight)] * 2 for name, weight in again.named_parameters()}
    for step in range(12):
        batch = induction_batch(8, seq_len=13, repeat_len=3, n_repeats=3, n_tokens=12)
        tokens, targets, counts = (x.numpy() for x in batch)
        logits, _ = plain.transformer(plain.from_authors(as_numpy(again), 3), tokens, residual_factor=2)
        # float64 rounding along 12 steps
        assert loop.step(*batch) == pytest.approx(
            plain.cross_entropy(logits[:, :12], targets)[counts].mean(), rel=1e-10
        )
        losses = torch.nn.functional.cross_entropy(again(batch[0])[:, :12].transpose(1, 2), batch[1], reduction="none")
        gradients = torch.autograd.grad(losses[batch[2]].mean(), list(again.parameters()))
        lr = 1e-2 * min(step / 10, 1)
        with torch.no_grad():
            for (name, weight), gradient in zip(again.named_parameters(), gradients):
                m, v = moments[name]
                m, v = moments[name] = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
                unbiased = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                weight.copy_(weight * (1 - lr * 0.5) - lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8))


@pytest.mark.parametrize("task", ["addition", "skip_trigram"])
def test_steps_on_sequences_lower_the_loss(task):
    from tests.reference.torch_loop import SequenceLoop, addition_batch, skip_trigram_batch

    net = sequence_net(d_vocab=22, d_vocab_out=10)
    batch, read = (addition_batch(64, 2), (5, 8)) if task == "addition" else (skip_trigram_batch(64, 5), (6, 7))
    loop = SequenceLoop(net, read, lr=1e-2)
    losses = [loop.step(*batch) for _ in range(60)]
    assert losses[1] == losses[0]  # the warm-up's first step has rate 0
    assert losses[-1] < 0.7 * losses[0]
