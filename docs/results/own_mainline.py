"""The tables and the figure of own-mainline.md, from the analysed run.

python docs/results/own_mainline.py RUN_DIR
"""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

import jaxgrok
from jaxgrok.figures.style import TEST, TRAIN, make_figure
from jaxgrok.measures import fourier
from jaxgrok.measures.all_pairs import mean_loss, run_network, split_of
from jaxgrok.tables.write import markdown

jax.config.update("jax_enable_x64", True)

SHOWN = (10_000, 20_000, 30_000, 40_000, 44_000, 46_000, 48_000, 50_000, 60_000, 80_000, 100_000)
HEADS = (20_000, 40_000, 44_000, 46_000, 47_000, 48_000, 50_000, 60_000, 80_000, 100_000)
# name: (published, the measure's path, how it is written)
ROWS = {
    "loss": ("2.4e-7", "loss/all", "{:.2e}"),
    "train loss": ("", "loss/train", "{:.3e}"),
    "test loss": ("", "loss/test", "{:.2e}"),
    "sum directions only (restricted loss)": ("5.5e-8", "restricted_loss/all", "{:.2e}"),
    "loss of the fitted cosines": ("4.7e-8", "logit_approximation_loss", "{:.2e}"),
    "logits by the fitted cosines, FVE": ("0.95", "logit_fve", "{:.3f}"),
    "constant and key blocks": ("7.2e-8", "ablation_loss/keep_key_blocks", "{:.2e}"),
    "clustered neurons as polynomials": ("2.5e-7", "ablation_loss/clustered_neurons_as_polynomials", "{:.2e}"),
    "MLP on the directions of W_L": ("1.2e-7", "ablation_loss/mlp_on_W_L_key_directions", "{:.2e}"),
    "MLP on their null space": ("5.27", "ablation_loss/mlp_on_their_null_space", "{:.2f}"),
    "MLP skip zero": ("9.1e-7", "ablation_loss/mlp_skip_zero", "{:.2e}"),
    "MLP skip at its mean": ("7.3e-7", "ablation_loss/mlp_skip_mean", "{:.2e}"),
    "attention zero": ("24.3", "ablation_loss/attention_zero", "{:.1f}"),
    "attention skip zero": ("19.1", "ablation_loss/attention_skip_zero", "{:.2g}"),
    "W_L residual": ("< 0.0055", "W_L_residual", "{:.3f}"),
    "neurons in no cluster": ("79", "neurons_unclustered", "{:d}"),
    "neurons always active": ("79", "neurons_always_active", "{:d}"),
    "sum of squared weights": ("955, 942 after 43K", "sum_squared_weights/total", "{:.1f}"),
}


def measures_of(results):
    """{path: [checkpoint, ...]} of the run, with `epoch`."""
    rows = [(epoch, found) for _, epoch, found in results.analysed()]
    return {
        "epoch": np.array([epoch for epoch, _ in rows]),
        **{name: np.stack([found[name] for _, found in rows]) for name in rows[0][1]},
    }


def changed(net, params, head, change):
    """The logits of all pairs if a head of this relu network attended otherwise.

    change: makes another pattern [a, b, head, position] of the network's own.
    """
    p, attn = net.logits.shape[-1], params["blocks_0"]["attn"]
    written = attn["W_V"][head] @ attn["W_O"][head]
    a_and_b = [(params["embed"]["W_E"][:p] + position) @ written for position in params["pos_embed"]["W_pos"][:2]]
    equals = (params["embed"]["W_E"][p] + params["pos_embed"]["W_pos"][2]) @ written
    more = (change(net.stream.pattern) - net.stream.pattern)[:, :, head]
    to_a, to_b, to_equals = np.moveaxis(more, 2, 0)[..., None]
    mid = net.stream.mid + to_a * a_and_b[0][:, None] + to_b * a_and_b[1][None] + to_equals * equals
    mlp = params["blocks_0"]["mlp"]
    neurons = np.maximum(mid @ mlp["W_in"] + mlp["b_in"], 0)
    return (mid + neurons @ mlp["W_out"] + mlp["b_out"]) @ params["unembed"]["W_U"][:, :p]


def without_equals(head):
    """The head attends to a and b alone."""

    def change(weights):
        weights = np.array(weights)
        weights[:, :, head, 2] = 0
        weights[:, :, head] /= weights[:, :, head].sum(axis=-1, keepdims=True)
        return weights

    return change


def equals_at_its_mean(head):
    """The head attends to "=" as much for every pair."""

    def change(weights):
        weights, mean = np.array(weights), weights[:, :, head, 2].mean()
        weights[:, :, head, :2] *= (1 - mean) / weights[:, :, head, :2].sum(axis=-1, keepdims=True)
        weights[:, :, head, 2] = mean
        return weights

    return change


def head_rows(results, record, epochs, head):
    """A row per epoch of what a head does with "=", and what becomes of the loss without it."""
    config, p = replace(record.config, dtype="float64"), record.config.p
    labels = split_of(config, record.run.frac, record.seed, record.run.split_seed).labels.reshape(p, p)
    rows = []
    for epoch in epochs:
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), results.network(record, epoch))
        net, attn = run_network(config, params), params["blocks_0"]["attn"]
        logits = [net.logits, *(changed(net, params, head, of(head)) for of in (without_equals, equals_at_its_mean))]
        attention, written = net.stream.pattern[:, :, head, 2], attn["W_V"][head] @ attn["W_O"][head]
        fit = fourier.fit_neurons(fourier.neuron_blocks(attention[..., None]))
        equals = (params["embed"]["W_E"][p] + params["pos_embed"]["W_pos"][2]) @ written
        numbers = params["embed"]["W_E"][:p] @ written
        spread = np.sqrt(((numbers - numbers.mean(axis=0)) ** 2).sum(axis=1).mean())
        rows.append(
            [
                f"{epoch:,}",
                f"{attention.mean():.4f} ({attention.max():.3f})",
                f"{fit.index[0] + 1} ({fit.fve[0]:.2f})",
                f"{np.linalg.norm(equals):.1f}, {spread:.1f}",
                *(f"{mean_loss(each, labels):.3g}" for each in logits),
            ]
        )
    return rows


def figure_of(m):
    figure, (loss, weights, attention, ablation) = make_figure(8.5, 8, rows=4, sharex=True)
    epoch = m["epoch"]
    for name, colour in (("loss/train", TRAIN), ("loss/test", TEST), ("restricted_loss/all", "#228833")):
        loss.plot(epoch, m[name], color=colour, label=name.replace("_", " ").replace("/", ", "))
    loss.set(yscale="log", ylim=(3e-8, 4e-6), ylabel="loss (nats)")
    weights.plot(epoch, m["sum_squared_weights/total"], color="k", label="sum of squared weights")
    weights.set(ylim=(940, 1000), ylabel="squared weights")
    for head, colour in enumerate(("#4477aa", "#ee6677", "#ccbb44", "#66ccee")):
        line = m["attention_to_equals_mean"][:, head]
        attention.plot(epoch, line, color=colour, label=f'head {head}, attention to "="')
    attention.set(yscale="log", ylim=(4e-4, 0.4), ylabel="mean over pairs")
    for name, colour in (("attention_zero", "k"), ("attention_skip_zero", "#aa3377"), ("mlp_skip_zero", "#228833")):
        ablation.plot(epoch, m[f"ablation_loss/{name}"], color=colour, label=name.replace("_", " "))
    ablation.set(yscale="log", ylabel="loss (nats)", xlabel="epoch", xlim=(8000, epoch[-1] + 1000))
    ablation.xaxis.set_major_formatter("{x:,.0f}")
    for axes in (loss, weights, attention, ablation):
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(run_dir):
    results = jaxgrok.load(run_dir)
    (record,) = results.runs
    m = measures_of(results)
    shown = [epoch for epoch in SHOWN if epoch in m["epoch"]]
    at = [list(m["epoch"]).index(epoch) for epoch in shown]
    rows = [
        [name, published, *(form.format(m[path][i].item()) for i in at)]
        for name, (published, path, form) in ROWS.items()
    ]
    keys = np.flatnonzero(m["key_frequencies/keys"][-1]) + 1
    clusters = [" ".join(map(str, m["neuron_clusters"][i][keys - 1])) for i in at]
    rows.append([f"neurons of keys {' '.join(map(str, keys))}", "44 93 145 87 64", *clusters])
    for head in range(record.config.n_heads):
        frequency = [m["attention_score_frequency/frequency"][i][head] for i in at]
        purity = [m["attention_score_frequency/fve"][i][head] for i in at]
        rows.append([f"head {head}: frequency (FVE)", "", *(f"{k} ({x:.2f})" for k, x in zip(frequency, purity))])
    print(markdown(["", "published", *(f"{epoch:,}" for epoch in shown)], rows), end="\n\n")
    head = int(np.argmax(m["attention_to_equals_mean"][-1]))
    header = ["epoch", 'attention to "=": mean (most)', "its frequency (FVE, with products)"]
    header += ['size of what "=" adds, and of what numbers add', "loss", 'without "="', '"=" at its mean']
    epochs = [epoch for epoch in HEADS if epoch in m["epoch"]]
    print(f"head {head}\n\n" + markdown(header, head_rows(results, record, epochs, head)))
    figure_of(m).savefig(Path(__file__).with_name("own-mainline.png"))


if __name__ == "__main__":
    main(sys.argv[1])
