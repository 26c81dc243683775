"""The table and the figure of clock-and-pizza.md.

python docs/results/clock_and_pizza.py RUN_DIR PUBLIC_CSV FIGURE
python docs/results/clock_and_pizza.py RUN_DIR PUBLIC_CSV

PUBLIC_CSV is result/1l_fixedwidth.csv of github.com/fjzzq2002/pizza; in the second form, which is by width and draws
nothing, 1l_varywidth.csv.
"""

import csv
import sys

import jax
import numpy as np

import jaxgrok
from jaxgrok.figures.style import make_figure
from jaxgrok.measures import clock_pizza
from jaxgrok.measures.all_pairs import run_network
from jaxgrok.tables.write import markdown
from jaxgrok.tasks import modular_task

NEAR_WIDTH, WIDER = 0.1, 2**0.5  # the same in the table by width, and by which factor a public width may differ
NEAR = 0.05  # how far the coefficient of a public run may lie from ours


def measured(config, params):
    """Symmetricity, irrelevance, and irrelevance of the largest wrong logit, which is what the public table has."""
    labels = modular_task(config).labels(0).reshape(config.p, config.p)
    logits = run_network(config, params).logits
    wrong = np.array(logits)
    np.put_along_axis(wrong, labels[..., None], -np.inf, axis=2)
    others = np.broadcast_to(wrong.max(axis=2)[..., None], wrong.shape)
    return [
        float(clock_pizza.gradient_symmetricity(config, params)),
        float(clock_pizza.distance_irrelevance(config, logits, labels)),
        float(clock_pizza.distance_irrelevance(config, others, labels)),
    ]


def public(path):
    """[attn_coeff, symmetricity, irrelevance of the largest wrong logit] of the public runs like ours."""
    with open(path) as file:
        rows = [
            [float(row[name]) for name in ("attn_coeff", "gradient_sim", "distance_irrelevance")]
            for row in csv.DictReader(file)
            if row["gradient_sim"] and row["n_layers"] == "1" and row["diff_vocab"] == row["eqn_sign"] == "0"
        ]
    return np.array(rows)


def spread(x, form="{:.2f}"):
    return f"{form.format(np.median(x))} ({form.format(np.min(x))} - {form.format(np.max(x))})"


def by_width(path, table):
    """The table by width: medians of both measures, ours and public."""
    results = jaxgrok.load(path)
    with open(table) as file:
        rows = [row for row in csv.DictReader(file) if row["gradient_sim"] and row["n_layers"] == "1"]
    names = ("attn_coeff", "d_model", "gradient_sim", "distance_irrelevance")
    theirs = np.array([[float(row[n]) for n in names] for row in rows if row["diff_vocab"] == row["eqn_sign"] == "0"])
    found = {}
    for record in results.runs:
        if results.timing(record).by("grokked") is not None:
            place = record.config.attn_coeff, record.config.d_model
            found.setdefault(place, []).append(measured(record.config, results.params(run=record.number)))
    out = []
    for (coeff, width), ours in sorted(found.items()):
        close = (np.abs(theirs[:, 0] - coeff) <= NEAR_WIDTH) & (np.abs(np.log(theirs[:, 1] / width)) <= np.log(WIDER))
        near, ours = theirs[close], np.array(ours)
        quartiles = ["{:.2f} ({:.2f} - {:.2f})".format(*np.percentile(near[:, i], (50, 25, 75))) for i in (2, 3)]
        numbers = [spread(ours[:, 0]), quartiles[0], spread(ours[:, 2]), quartiles[1]]
        out.append([f"{coeff:g}", str(width), str(len(ours)), str(len(near)), *numbers])
    header = ["attn_coeff", "d_model", "our runs", "public runs", "symmetricity", "public", "irrelevance, wrong logit"]
    print(markdown([*header, "public"], out))


def main(path, table, figure_path):
    results, theirs = jaxgrok.load(path), public(table)
    done = [record for record in results.runs if results.timing(record).by("grokked") is not None]
    ours = np.array(
        [[record.config.attn_coeff, *measured(record.config, results.params(run=record.number))] for record in done]
    )
    rows = []
    for coeff in sorted({record.config.attn_coeff for record in results.runs}):
        mine, near = ours[ours[:, 0] == coeff], theirs[np.abs(theirs[:, 0] - coeff) <= NEAR]
        quartiles = ["{:.2f} ({:.2f} - {:.2f})".format(*np.percentile(near[:, i], (50, 25, 75))) for i in (1, 2)]
        runs = sum(record.config.attn_coeff == coeff for record in results.runs)
        cells = [spread(mine[:, i]) if len(mine) else "" for i in (1, 3, 2)]
        rows.append([f"{coeff:g}", f"{len(mine)} of {runs}", cells[0], quartiles[0], cells[1], quartiles[1], cells[2]])
    header = ["attn_coeff", "grokked", "symmetricity", f"public, {len(theirs):,} runs", "irrelevance, wrong logit"]
    print(markdown([*header, "public", "irrelevance, right logit"], rows))
    figure, panels = make_figure(8, 3.4, columns=2, layout="compressed")
    for axes, i, j, name in zip(
        panels, (1, 3), (1, 2), ("gradient symmetricity", "distance irrelevance (wrong logit)")
    ):
        axes.plot(theirs[:, 0], theirs[:, j], ".", color="0.75", ms=3, label="public runs", rasterized=True)
        axes.plot(ours[:, 0], ours[:, i], "o", color="#0072B2", ms=5, label="ours")
        axes.set(xlabel="attn_coeff", ylabel=name, ylim=(0, 1.05))
    panels[0].legend(loc="lower left")
    figure.savefig(figure_path, dpi=130)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    (main if len(sys.argv) == 4 else by_width)(*sys.argv[1:])
