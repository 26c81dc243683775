"""The tables of what networks learned: a row per run and checkpoint, per key, per run, and medians over seeds to read.

    tables/measures.csv   a row per run and checkpoint: every measure that is one number, or one per head
    tables/keys.csv       a row per run, checkpoint and key: every measure that is one number per key
    tables/networks.csv   a row per run, at its last checkpoint: keys by each rule, cluster sizes, and the row of measures.csv
    tables/networks.md    a cell's networks as median and range over seeds

Columns bear the names of `measures.all`, joined by "_".
"""

import csv
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from jaxgrok.measures.checkpoints import CIRCUITS, kind_of, of_kind
from jaxgrok.measures.fourier import frequencies_of
from jaxgrok.store.results import AXES, Results
from jaxgrok.store.steps import replace_text
from jaxgrok.tables.timing import Cell, markdown

WITHOUT_KEY = "ablation_loss/remove_key_from_neurons"
RULES = ("W_L", "W_E", "neurons")
# column of keys.csv: (measure, whether it has a row per cos and per sin of a frequency)
PER_KEY = {
    "alpha": ("alpha", False),
    "excluded_loss": ("excluded_loss_per_key", False),
    "loss_without_in_neurons": (WITHOUT_KEY, False),
    "neurons": ("neuron_clusters", False),
    "W_E_norm": ("W_E_frequency_norms", False),
    "W_L_norm": ("W_L_frequency_norms", False),
    "readout_fve_cos": ("mlp_readout_fve", 0),
    "readout_fve_sin": ("mlp_readout_fve", 1),
}


def of_key(x, k: int, part: int | bool):
    """A measure at frequency k: x [K], or, with part 0 (cos) or 1 (sin), x [F - 1]; None where that row does not exist."""
    if part is False:
        return x[k - 1]
    row = 2 * (k - 1) + part
    return x[row] if row < len(x) else None


def _is_per_head(name: str, x) -> bool:
    return name.startswith("attention_") and np.ndim(x) == 1


def scalars(found: dict) -> dict:
    """{column: number} of one network's measures: those that are one number, or one per head."""
    columns = {}
    for name, x in found.items():
        column = name.replace("/", "_")
        if name in ("run", "dtype", "epoch"):
            continue
        if np.ndim(x) == 0:
            columns[column] = x.item()
        elif _is_per_head(name, x):
            columns |= {f"{column}_{head}": value.item() for head, value in enumerate(x)}
    return columns


def _coordinates(results: Results, record: dict, epoch: int) -> dict:
    fields = (*AXES, *(name for name in results.varying() if name not in AXES))
    return {"run": record["run"], "seed": record["seed"], **{name: record[name] for name in fields}, "epoch": epoch}


def _listed(mask) -> str:
    return " ".join(map(str, frequencies_of(mask)))


def measures_row(results: Results, record: dict, epoch: int, found: dict) -> dict:
    """A row of measures.csv."""
    keys = found["key_frequencies/keys"]
    sets = {"n_keys": int(keys.sum()), "keys": _listed(keys), "keys_found": _listed(found["key_frequencies/found"])}
    return _coordinates(results, record, epoch) | sets | scalars(found)


def network_row(results: Results, record: dict, found: dict) -> dict:
    """A row of networks.csv, of a run's last analysed checkpoint."""
    sizes = found["neuron_clusters"]
    sets = {f"keys_by_{rule}": _listed(found[f"key_frequencies/{rule}"]) for rule in RULES}
    sets["clusters"] = " ".join(f"{k}:{sizes[k - 1]}" for k in frequencies_of(sizes > 0))
    row = measures_row(results, record, found["epoch"], found)
    at = _coordinates(results, record, found["epoch"])
    return at | {"outcome": results.timing(record).outcome, "n_keys": row["n_keys"], "keys": row["keys"]} | sets | row


def keys_rows(results: Results, record: dict, epoch: int, found: dict) -> list[dict]:
    """The rows of keys.csv of one checkpoint."""
    rows = []
    for k in frequencies_of(found["key_frequencies/keys"]):
        values = {column: of_key(found[name], k, part) for column, (name, part) in PER_KEY.items()}
        rows.append(_coordinates(results, record, epoch) | {"k": k} | values)
    return rows


def _columns(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _write_csv(path: Path, columns: list[str], rows: Iterable[dict]) -> None:
    """Write rows as they come; what a row lacks is empty."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


# --- networks of a cell, to read ----------------------------------------------------------------------------------------


def _one(name: str) -> Callable:
    """The value of a measure that is one number."""
    return lambda found: np.atleast_1d(found[name])


def _per_key(name: str, parts=(False,)) -> Callable:
    """A measure at each key."""

    def values(found):
        keys = frequencies_of(found["key_frequencies/keys"])
        return np.array([x for k in keys for part in parts if (x := of_key(found[name], k, part)) is not None], float)

    return values


# (what, values of one network, the measure of its random control, how a number is written)
QUANTITIES = (
    ("key frequencies", lambda found: np.atleast_1d(found["key_frequencies/keys"].sum()), None, "{:g}"),
    ("neurons in a key's cluster", _per_key("neuron_clusters"), None, "{:g}"),
    ("neurons in no cluster", _one("neurons_unclustered"), None, "{:g}"),
    ("neurons always active", _one("neurons_always_active"), None, "{:g}"),
    ("neuron FVE, median over neurons", _one("neuron_fve_median"), None, "{:.3f}"),
    ("logit FVE", _one("logit_fve"), "logit_fve", "{:.3f}"),
    ("W_L residual", _one("W_L_residual"), None, "{:.4f}"),
    ("MLP readout FVE, per row", _per_key("mlp_readout_fve", (0, 1)), None, "{:.3f}"),
    ("alpha, per key", _per_key("alpha"), None, "{:.1f}"),
    ("Gini of W_E", _one("gini/W_E"), None, "{:.3f}"),
    ("Gini of W_L", _one("gini/W_L"), None, "{:.3f}"),
    ("sum of squared weights", _one("sum_squared_weights/total"), None, "{:.0f}"),
    ("attention score, FVE of a head's best frequency", _one("attention_score_frequency/fve"), None, "{:.3f}"),
    ('attention to "="', _one("attention_to_equals_mean"), None, "{:.4f}"),
    ("loss", _one("loss/all"), None, "{:.2e}"),
    ("restricted loss", _one("restricted_loss/all"), "restricted_loss/all", "{:.2e}"),
    ("loss of the fitted cosines", _one("logit_approximation_loss"), "logit_approximation_loss", "{:.2e}"),
    ("excluded loss (train), all keys", _one("excluded_loss/train"), "excluded_loss/train", "{:.2e}"),
    ("excluded loss (train), one key", _per_key("excluded_loss_per_key"), "excluded_loss_per_key", "{:.2e}"),
    ("keep the constant and the key blocks", _one("ablation_loss/keep_key_blocks"), "ablation_loss/keep_key_blocks", "{:.2e}"),
    (
        "remove one key from the neurons",
        _per_key("ablation_loss/remove_key_from_neurons"),
        "ablation_loss/remove_key_from_neurons",
        "{:.2e}",
    ),
    *(
        (what, _one(f"ablation_loss/{name}"), f"ablation_loss/{name}" if has_control else None, "{:.2e}")
        for what, name, has_control in (
            ("clustered neurons as polynomials", "clustered_neurons_as_polynomials", True),
            ("MLP on the key directions of W_L", "mlp_on_W_L_key_directions", True),
            ("MLP on their null space", "mlp_on_their_null_space", True),
            ("MLP skip connection zero", "mlp_skip_zero", False),
            ("MLP skip connection at its mean", "mlp_skip_mean", False),
            ("attention zero", "attention_zero", False),
            ("attention skip zero", "attention_skip_zero", False),
        )
    ),
)


def summary(values, form: str) -> str:
    """`median (lowest - highest)`, or the one value; `-` where none is a number."""
    values = np.concatenate([*values, []])
    values = values[np.isfinite(values)]
    if not len(values):
        return "-"
    middle, low, high = (form.format(x) for x in (np.median(values), values.min(), values.max()))
    return middle if low == high else f"{middle} ({low} - {high})"


def networks_table(networks: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for people: a row per quantity, its median and range over networks (`Results.last_analysed`), and its control's.

    What a network has one of per key, row or head is pooled; a network without keys has no value where keys are needed.
    """
    rows = []
    for what, values, control, form in QUANTITIES:
        ours = summary([_or_none(values, found) for found in networks], form)
        random = "" if control is None else summary([_or_none(_one(f"controls/{control}/median"), found) for found in networks], form)
        rows.append([what, ours, random])
    return ["quantity", "median (range)", "random control"], rows


def _or_none(values: Callable, found: dict):
    """Nothing where a network's architecture has no such measure."""
    try:
        return values(found)
    except KeyError:
        return np.array([])


def by_seed(cell: Cell, networks: list[dict]) -> list[tuple[str, dict]]:
    """[(`seed 3, epoch 8,000`, network)] of a cell."""
    seeds = {record["run"]: record["seed"] for record in cell.records}
    return [(f"seed {seeds[int(found['run'])]}, epoch {found['epoch']:,}", found) for found in networks]


def keys_table(named: list[tuple[str, dict]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) for people: a network's keys with their clusters, and what each rule finds."""
    rows = []
    for name, found in named:
        sizes = found["neuron_clusters"]
        keys = ", ".join(f"{k} ({sizes[k - 1]})" for k in frequencies_of(found["key_frequencies/keys"])) or "no keys"
        rows.append([name, keys, *(_listed(found[f"key_frequencies/{rule}"]) for rule in RULES)])
    return ["", "keys (neurons)", *(f"rule {rule}" for rule in RULES)], rows


NETWORKS_NOTE = (
    "Each network at its last checkpoint; FVE: share of variance explained; losses over all pairs and the p number classes, in nats. "
    "Controls: as many random non-key frequencies or random directions, the median of 10 draws per network."
)


def _runs(results: Results) -> set[int]:
    """The numbers of the runs whose circuits are measured."""
    return {record["run"] for record in results.runs if kind_of(results.config(record)) == CIRCUITS}


def networks_markdown(results: Results, of_cells: list[Cell]) -> str:
    """networks.md: for each cell its keys by seed, and its networks' quantities."""
    parts = [f"# {results.path.name}: what the networks learned"]
    for cell in of_kind(CIRCUITS, of_cells):
        networks = results.last_analysed(cell.records)
        if not networks:
            continue
        parts += [f"## {cell.name}"] if cell.name else []
        parts += [markdown(*keys_table(by_seed(cell, networks))), markdown(*networks_table(networks))]
    return "\n\n".join([*parts, NETWORKS_NOTE]) + "\n"


def write_circuit_tables(results: Results, of_cells: list[Cell]) -> None:
    """Write tables/measures.csv, keys.csv, networks.csv and networks.md, where a sweep has runs whose circuits are measured."""
    runs = _runs(results)
    if not runs:
        return
    folder = results.path / "tables"
    folder.mkdir(exist_ok=True)
    of_run = {record["run"]: record for record in results.runs}
    last = [(of_run[int(found["run"])], found) for found in results.last_analysed([of_run[run] for run in sorted(runs)])]
    networks = [network_row(results, record, found) for record, found in last]
    _write_csv(folder / "networks.csv", _columns(networks), networks)
    # All checkpoints of a run have the columns of its last.
    columns = _columns([measures_row(results, record, found["epoch"], found) for record, found in last])
    _write_csv(folder / "measures.csv", columns, (measures_row(results, *x) for x in results.analysed(runs)))
    columns = [*(_coordinates(results, results.runs[0], 0)), "k", *PER_KEY]
    _write_csv(folder / "keys.csv", columns, (row for x in results.analysed(runs) for row in keys_rows(results, *x)))
    replace_text(folder / "networks.md", networks_markdown(results, of_cells))
