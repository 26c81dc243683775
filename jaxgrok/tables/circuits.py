"""The tables of what networks learned.

    tables/measures.csv   a row per run and checkpoint: every measure that is one number, or one number per head
    tables/keys.csv       a row per run, checkpoint and key: every measure that is one number per key
    tables/networks.csv   a row per run, at its last checkpoint: the keys by each rule, the sizes of the neuron
    clusters,
                          and the row of measures.csv
    tables/networks.md    for people: the networks of each cell as medians and ranges over seeds

Columns have the names of `measures.all`, joined by "_".
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxgrok.config import UNLIMITED
from jaxgrok.measures.fourier import frequencies_of
from jaxgrok.measures.subjects import CIRCUITS, kind_of, of_kind
from jaxgrok.store.results import AXES, KEYS, NOT_MEASURES, Cell, Results, RunRecord
from jaxgrok.tables.write import markdown, write_csv, write_text
from jaxgrok.task_names import is_operation
from jaxgrok.tasks import modular_task

Found = dict[str, Any]  # {name: array} of one network, as `Results.analysed` and `Results.last_analysed` give it
Row = dict[str, Any]  # {column: value}
Table = tuple[list[str], list[list[str]]]  # (header, rows), for people

WITHOUT_KEY = "ablation_loss/remove_key_from_neurons"
RULES = ("W_L", "W_E", "neurons")


# --- a measure at a key -----------------------------------------------------------------------------------------------


def at_key(name: str) -> Callable[[Found, int], Any]:
    """A measure [K] at frequency k."""
    return lambda found, k: found[name][k - 1]


def cos_row(name: str) -> Callable[[Found, int], Any]:
    """A measure [F - 1] at the cos row of frequency k."""
    return lambda found, k: found[name][2 * (k - 1)]


def sin_row(name: str) -> Callable[[Found, int], Any]:
    """A measure [F - 1] at the sin row of frequency k; None for k = p / 2, which has no sin."""

    def value(found: Found, k: int) -> Any:
        row = 2 * (k - 1) + 1
        return found[name][row] if row < len(found[name]) else None

    return value


# column of keys.csv: its value at a key
PER_KEY: dict[str, Callable[[Found, int], Any]] = {
    "alpha": at_key("alpha"),
    "excluded_loss": at_key("excluded_loss_per_key"),
    "loss_without_in_neurons": at_key(WITHOUT_KEY),
    "neurons": at_key("neuron_clusters"),
    "W_E_norm": at_key("W_E_frequency_norms"),
    "W_L_norm": at_key("W_L_frequency_norms"),
    "readout_fve_cos": cos_row("mlp_readout_fve"),
    "readout_fve_sin": sin_row("mlp_readout_fve"),
}


# --- rows of the CSV files --------------------------------------------------------------------------------------------


def scalars(found: Found) -> Row:
    """The measures of one network that are one number, or one number per head."""
    columns: Row = {}
    for name, x in found.items():
        column = name.replace("/", "_")
        if name in NOT_MEASURES or name == "epoch":
            continue
        if np.ndim(x) == 0:
            columns[column] = x.item()
        elif name.startswith("attention_") and np.ndim(x) == 1:
            columns |= {f"{column}_{head}": value.item() for head, value in enumerate(x)}
    return columns


def coordinates_of(results: Results, record: RunRecord, epoch: int) -> Row:
    """The first columns of every row: which run it is about, at which epoch."""
    fields = (*AXES, *(name for name in results.varying if name not in AXES))
    values = {name: record.coordinates[name] for name in fields}
    if record.run.unlimited and "n_train" in values:
        values["n_train"] = UNLIMITED
    return {"run": record.number, "seed": record.seed, **values, "epoch": epoch}


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The columns of all rows, in the order in which they first appear."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _listed(mask: Bool[np.ndarray, "K"]) -> str:
    return " ".join(map(str, frequencies_of(mask)))


def measures_row(results: Results, record: RunRecord, epoch: int, found: Found) -> Row:
    """A row of measures.csv."""
    keys = found[KEYS]
    sets = {"n_keys": int(keys.sum()), "keys": _listed(keys), "keys_found": _listed(found["key_frequencies/found"])}
    return coordinates_of(results, record, epoch) | sets | scalars(found)


def network_row(results: Results, record: RunRecord, found: Found) -> Row:
    """A row of networks.csv, from a run's last analysed checkpoint."""
    sizes = found["neuron_clusters"]
    sets = {f"keys_by_{rule}": _listed(found[f"key_frequencies/{rule}"]) for rule in RULES}
    sets["clusters"] = " ".join(f"{k}:{sizes[k - 1]}" for k in frequencies_of(sizes > 0))
    row = measures_row(results, record, found["epoch"], found)
    at = coordinates_of(results, record, found["epoch"])
    return at | {"outcome": results.timing(record).outcome, "n_keys": row["n_keys"], "keys": row["keys"]} | sets | row


def keys_rows(results: Results, record: RunRecord, epoch: int, found: Found) -> list[Row]:
    """The rows of keys.csv of one checkpoint."""
    at = coordinates_of(results, record, epoch)
    return [
        at | {"k": k} | {column: value(found, k) for column, value in PER_KEY.items()}
        for k in frequencies_of(found[KEYS])
    ]


def _write_rows(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write rows as they come. A value that a row lacks is empty."""
    write_csv(path, columns, ([row.get(column) for column in columns] for row in rows))


# --- networks of a cell, for people -----------------------------------------------------------------------------------


def one(name: str) -> Callable[[Found], Float[np.ndarray, "..."]]:
    """The values of a measure that is one number, or one per head."""
    return lambda found: np.atleast_1d(found[name])


def at_keys(*values: Callable[[Found, int], Any]) -> Callable[[Found], Float[np.ndarray, "keys"]]:
    """The values of a measure at every key, where they exist."""

    def at_every_key(found: Found) -> Float[np.ndarray, "keys"]:
        numbers = [value(found, k) for k in frequencies_of(found[KEYS]) for value in values]
        return np.array([x for x in numbers if x is not None], float)

    return at_every_key


class Quantity(NamedTuple):
    """A row of networks.md.

    Attributes:
        label: what it is called.
        values: its values in one network.
        form: how a number is written.
        control: the measure whose random control stands beside it; None if there is no such control.
    """

    label: str
    values: Callable[[Found], np.ndarray]
    form: str
    control: str | None = None


def _ablation(label: str, name: str, controlled: bool = False) -> Quantity:
    measure = f"ablation_loss/{name}"
    return Quantity(label, one(measure), "{:.2e}", measure if controlled else None)


QUANTITIES = (
    Quantity("key frequencies", lambda found: np.atleast_1d(found[KEYS].sum()), "{:g}"),
    Quantity("neurons in a key's cluster", at_keys(at_key("neuron_clusters")), "{:g}"),
    Quantity("neurons in no cluster", one("neurons_unclustered"), "{:g}"),
    Quantity("neurons always active", one("neurons_always_active"), "{:g}"),
    Quantity("neuron FVE, median over neurons", one("neuron_fve_median"), "{:.3f}"),
    Quantity("logit FVE", one("logit_fve"), "{:.3f}", "logit_fve"),
    Quantity("W_L residual", one("W_L_residual"), "{:.4f}"),
    Quantity("MLP readout FVE, per row", at_keys(cos_row("mlp_readout_fve"), sin_row("mlp_readout_fve")), "{:.3f}"),
    Quantity("alpha, per key", at_keys(at_key("alpha")), "{:.1f}"),
    Quantity("Gini of W_E", one("gini/W_E"), "{:.3f}"),
    Quantity("Gini of W_L", one("gini/W_L"), "{:.3f}"),
    Quantity("sum of squared weights", one("sum_squared_weights/total"), "{:.0f}"),
    Quantity("attention score, FVE of a head's best frequency", one("attention_score_frequency/fve"), "{:.3f}"),
    Quantity('attention to "="', one("attention_to_equals_mean"), "{:.4f}"),
    Quantity("gradient symmetricity", one("gradient_symmetricity"), "{:.3f}"),
    Quantity("distance irrelevance", one("distance_irrelevance"), "{:.3f}"),
    Quantity("loss", one("loss/all"), "{:.2e}"),
    Quantity("restricted loss", one("restricted_loss/all"), "{:.2e}", "restricted_loss/all"),
    Quantity("loss of the fitted cosines", one("logit_approximation_loss"), "{:.2e}", "logit_approximation_loss"),
    Quantity("excluded loss (train), all keys", one("excluded_loss/train"), "{:.2e}", "excluded_loss/train"),
    Quantity(
        "excluded loss (train), one key", at_keys(at_key("excluded_loss_per_key")), "{:.2e}", "excluded_loss_per_key"
    ),
    _ablation("keep the constant and the key blocks", "keep_key_blocks", controlled=True),
    Quantity("remove one key from the neurons", at_keys(at_key(WITHOUT_KEY)), "{:.2e}", WITHOUT_KEY),
    _ablation("clustered neurons as polynomials", "clustered_neurons_as_polynomials", controlled=True),
    _ablation("MLP on the key directions of W_L", "mlp_on_W_L_key_directions", controlled=True),
    _ablation("MLP on their null space", "mlp_on_their_null_space", controlled=True),
    _ablation("MLP skip connection zero", "mlp_skip_zero"),
    _ablation("MLP skip connection at its mean", "mlp_skip_mean"),
    _ablation("attention zero", "attention_zero"),
    _ablation("attention skip zero", "attention_skip_zero"),
)


def summary(values: Sequence[np.ndarray], form: str) -> str:
    """`median (lowest - highest)` of all values together, or the value itself if they are equal; `-` if none is
    finite."""
    pooled = np.concatenate([*values, []])
    pooled = pooled[np.isfinite(pooled)]
    if not len(pooled):
        return "-"
    middle, low, high = (form.format(x) for x in (np.median(pooled), pooled.min(), pooled.max()))
    return middle if low == high else f"{middle} ({low} - {high})"


def _over_networks(values: Callable[[Found], np.ndarray], networks: Sequence[Found], form: str) -> str:
    """`summary` over the networks whose architecture has the measure."""
    found = []
    for network in networks:
        try:
            found.append(values(network))
        except KeyError:  # the MLP network has no attention, for instance
            continue
    return summary(found, form)


def networks_table(networks: Sequence[Found]) -> Table:
    """A row per quantity: its median and range over networks, and those of its random control.

    Values that a network has one of per key, row or head are pooled. A network without keys adds no value to the
    measures that need keys.

    networks: as `Results.last_analysed` gives them.
    """
    rows = []
    for quantity in QUANTITIES:
        ours = _over_networks(quantity.values, networks, quantity.form)
        control = "" if quantity.control is None else f"controls/{quantity.control}/median"
        rows.append([quantity.label, ours, control and _over_networks(one(control), networks, quantity.form)])
    return ["quantity", "median (range)", "random control"], rows


def by_seed(cell: Cell, networks: Sequence[Found]) -> list[tuple[str, Found]]:
    """[(`seed 3, epoch 8,000`, network)] of a cell's networks."""
    seeds = {record.number: record.seed for record in cell.records}
    return [(f"seed {seeds[int(found['run'])]}, epoch {found['epoch']:,}", found) for found in networks]


def keys_table(named: Sequence[tuple[str, Found]]) -> Table:
    """A row per network: its keys with the number of neurons of each, and what each rule finds."""
    rows = []
    for name, found in named:
        sizes = found["neuron_clusters"]
        keys = ", ".join(f"{k} ({sizes[k - 1]})" for k in frequencies_of(found[KEYS])) or "no keys"
        rows.append([name, keys, *(_listed(found[f"key_frequencies/{rule}"]) for rule in RULES)])
    return ["", "keys (neurons)", *(f"rule {rule}" for rule in RULES)], rows


NETWORK_NOTE = (
    "FVE is the fraction of variance explained. Losses are over all "
    "pairs and the p number classes, in nats. The random control replaces the keys by as many random non-key "
    "frequencies, or by random directions: the median of 10 draws per network."
)
GROUP_NOTE = (
    "Products and quotients modulo a prime are measured on the pairs without 0, and their frequencies are of the "
    "discrete logarithm modulo p - 1."
)


NORM_NOTE = (
    "Of networks with a norm W_E, W_L and the logits are read as they are: W_L is without the factor of the last norm, "
    "which could be folded into W_U. Ablations of parts of such a network are not known, because the norm makes its "
    "logits no sum of them."
)


def networks_note(cells: Iterable[Cell]) -> str:
    """What a reader of these cells' networks must know."""
    cells = list(cells)
    normed = any(cell.config.norm != "none" for cell in cells)
    others = any(is_operation(cell.config.task) and modular_task(cell.config).is_multiplicative for cell in cells)
    notes = [NETWORK_NOTE, *([GROUP_NOTE] if others else []), *([NORM_NOTE] if normed else [])]
    return " ".join(["Each network is measured at its last checkpoint.", *notes])


def networks_markdown(results: Results, cells: Sequence[Cell]) -> str:
    """networks.md: for each cell, the keys of its networks by seed, and the quantities of its networks."""
    parts = [f"# {results.path.name}: what the networks learned"]
    for cell in of_kind(CIRCUITS, cells):
        networks = results.last_analysed(cell.records)
        if not networks:
            continue
        parts += [f"## {cell.name}"] if cell.name else []
        parts += [markdown(*keys_table(by_seed(cell, networks))), markdown(*networks_table(networks))]
    return "\n\n".join([*parts, networks_note(cells)]) + "\n"


def write_circuit_tables(results: Results, folder: Path | None = None) -> None:
    """Write measures.csv, keys.csv, networks.csv and networks.md, if circuits are measured in any run of the sweep.

    folder: where to write them. None means the sweep's own `tables`.

    Raises BadInput if the folder cannot be written.
    """
    records = [record for record in results.runs if kind_of(record.config) is CIRCUITS]
    if not records:
        return
    folder = results.path / "tables" if folder is None else folder
    runs = {record.number: record for record in records}
    last = [(runs[int(found["run"])], found) for found in results.last_analysed(records)]
    networks = [network_row(results, record, found) for record, found in last]
    _write_rows(folder / "networks.csv", columns_of(networks), networks)
    # The last checkpoints have the columns of all others, since all of a run are measured with one schema.
    columns = columns_of(measures_row(results, record, found["epoch"], found) for record, found in last)
    _write_rows(folder / "measures.csv", columns, (measures_row(results, *x) for x in results.analysed(set(runs))))
    columns = [*coordinates_of(results, results.runs[0], 0), "k", *PER_KEY]
    rows = (row for x in results.analysed(set(runs)) for row in keys_rows(results, *x))
    _write_rows(folder / "keys.csv", columns, rows)
    write_text(folder / "networks.md", networks_markdown(results, results.cells))
