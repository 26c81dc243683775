"""Measure what networks have learned: every checkpoint of a sweep, or one file of weights. See --help and README.md."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its idle threads spin beside those of jax

import json
import sys
from pathlib import Path

from jaxgrok.cli.parser import Parser, status_of
from jaxgrok.config import CHOICES, MODULAR, BadInput, digits_of
from jaxgrok.training.grid import GRID_FIELDS, parse_list, whole

EPILOG = """\
examples:
  analyze.py runs/frac                                       every measure of every checkpoint; tables and figures
  analyze.py runs/frac --seed 3 --frac 0.3 --json out.json   one network of it
  analyze.py runs/frac --run 7 --epoch 8000 --export net.pth --names transformer_lens
  analyze.py weights.pth --frac 0.3 --split-seed 1 --json out.json --figures circuits
  analyze.py weights.pth --task induction --residual-factor 2

A directory is gone on with where it stopped. Nothing in a file of weights is executed.
"""
ONE_NETWORK = ("json", "export", "figures")
COORDINATES = ("run", "seed", "frac", "wd", "lr")
SEQUENCES = ("seq_len", "repeat_len", "n_repeats", "n_tokens")
OF_A_FILE = ("split_seed", "task", "act", "residual_factor", *SEQUENCES)


def parser() -> Parser:
    p = Parser(description=__doc__, epilog=EPILOG)
    p.add_argument("target", type=Path, help="a directory that sweep.py made, or a file of weights: .pth .pt .safetensors .npz")
    p.add_argument("--dtype", help=f"{' '.join(CHOICES['dtype'])} of the analysis (default float32)")
    one = p.add_argument_group("one network: with any of these, nothing else is done")
    one.add_argument("--json", metavar="FILE", type=Path, help="write its measures")
    one.add_argument("--export", metavar="FILE", type=Path, help="write its weights: .pth .safetensors .npz")
    one.add_argument("--figures", metavar="DIR", type=Path, help="draw its circuits")
    p.add_argument("--names", help="of the weights, exported or read: authors transformer_lens (default: authors; reading: what fits)")
    run = p.add_argument_group("which network of a directory")
    run.add_argument("--run", metavar="N", help="its number in timings.csv; or its coordinates:")
    run.add_argument("--seed", metavar="N", help="of the run; for a file: of random labels (default: the split's)")
    run.add_argument("--wd", metavar="X", help="weight decay")
    run.add_argument("--lr", metavar="X", help="learning rate")
    run.add_argument("--epoch", metavar="N", help="a saved epoch (default: the last)")
    file = p.add_argument_group("what the network in a file was trained on")
    file.add_argument("--frac", metavar="X", help="fraction of the pairs trained on (default 0.3); or which run of a directory")
    file.add_argument("--split-seed", metavar="N", help="seed of the train/test split (default 0)")
    file.add_argument("--task", help=f"{' '.join(CHOICES['task'])} (default add)")
    file.add_argument("--act", help=f"{' '.join(CHOICES['act'])} (default relu)")
    file.add_argument("--residual-factor", metavar="X", help="of x in X x + sublayer(x) (default 1; 2 in released induction networks)")
    for name in SEQUENCES:
        file.add_argument(f"--{name.replace('_', '-')}", metavar="N", help="of induction, as in sweep.py")
    return p


def checked(args: dict) -> dict:
    """The flags that were given, as numbers and known names. Raises BadInput naming the flag."""
    given = {name: value for name, value in args.items() if value is not None}
    for name in ("run", "seed", "epoch", "split_seed", *SEQUENCES):
        if name in given:
            given[name] = whole(f"--{name.replace('_', '-')}", given[name], 0)
    for name, parse in (*((name, GRID_FIELDS[name]) for name in ("frac", "wd", "lr")), ("residual_factor", factors)):
        if name in given:
            flag = f"--{name.replace('_', '-')}"
            values = parse(flag, given[name])
            if len(values) > 1:
                raise BadInput(flag, given[name], "one number")
            given[name] = values[0]
    for name in ("dtype", "task", "act"):
        if given.get(name, CHOICES[name][0]) not in CHOICES[name] and not (name == "task" and digits_of(given[name])):
            raise BadInput(f"--{name}", given[name], " ".join(CHOICES[name]))
    if given.get("names", "authors") not in ("authors", "transformer_lens"):
        raise BadInput("--names", given["names"], "authors transformer_lens")
    for name in ("json", "export"):
        if name in given and (not given[name].absolute().parent.is_dir() or given[name].is_dir()):
            raise BadInput(f"--{name}", str(given[name]), "a file in a directory that exists")
    return given


def factors(flag: str, value) -> tuple:
    return parse_list(flag, value, float, "a number > 0")


def refuse(given: dict, names, accepted: str) -> None:
    for name in names:
        if name in given:
            raise BadInput(f"--{name.replace('_', '-')}", given[name], accepted)


def analyze_directory(given: dict) -> int:
    from jaxgrok import figures
    from jaxgrok.cli import show as progress
    from jaxgrok.measures import checkpoints as analysis
    from jaxgrok.tables import circuits as circuit_tables
    from jaxgrok.tables import heads as head_tables
    from jaxgrok.tables import timing as report

    with progress.Steps() as watch:
        results = analysis.analyze(given["target"], dtype=given.get("dtype", "float32"), watch=watch)
    cells = report.write_tables(results)
    circuit_tables.write_circuit_tables(results, cells)
    head_tables.write_head_tables(results, cells)
    figures.write_figures(results, cells)
    figures.write_circuit_figures(results, cells)
    figures.write_head_figures(results, cells)
    progress.show_networks(results, cells)
    return 0


def analyze_one(given: dict) -> int:
    from jaxgrok import figures
    from jaxgrok.cli import show as progress
    from jaxgrok.measures import checkpoints as analysis
    from jaxgrok.nets import interop
    from jaxgrok.store.results import load
    from jaxgrok.store.steps import replace_text

    if given["target"].is_dir():
        coordinates = {name: given[name] for name in COORDINATES if name in given}
        subject = analysis.subject_of_run(load(given["target"]), given.get("epoch"), **coordinates)
    else:
        options = ("frac", "seed", *OF_A_FILE, *(() if "export" in given else ("names",)))
        subject = analysis.subject_of_file(given["target"], **{name: given[name] for name in options if name in given})
    if "export" in given:
        interop.save(given["export"], subject.config, subject.params, given.get("names", "authors"))
        if subject.config.residual_factor != 1:
            print(f"the file says nothing of the residual factor {subject.config.residual_factor:g}: give it where the weights are read")
    if set(given) & {"json", "figures"} or not set(given) & set(ONE_NETWORK):
        dtype = given.get("dtype", "float32")
        measured = analysis.measure(subject, dtype)
        if "json" in given:
            replace_text(given["json"], json.dumps(analysis.to_json(subject, measured), indent=1) + "\n")
        if "figures" in given:
            config, params = analysis.config_for_analysis(subject.config, dtype), analysis.cast(subject.params, dtype)
            figures.write_network_figures(config, params, measured, given["figures"])
        progress.show_network(analysis.flatten(measured), analysis.remarks(subject, measured))
    return 0


def run(argv) -> int:
    given = checked(vars(parser().parse_args(argv)))
    if not os.path.exists(given["target"]):
        raise BadInput("run directory or file", str(given["target"]), "one that exists")
    is_directory, wants_one = given["target"].is_dir(), bool(set(given) & set(ONE_NETWORK))
    if is_directory:
        refuse(given, OF_A_FILE, "with a file of weights; the runs of a directory know theirs")
        if not wants_one:
            refuse(given, ("epoch", *COORDINATES), "with --json, --export or --figures, which are of one network")
        if "export" not in given:
            refuse(given, ("names",), "with --export, or a file of weights")
    else:
        refuse(given, ("run", "epoch", "wd", "lr"), "with a directory; a file holds one network")
        if given.get("task", MODULAR[0]) not in MODULAR:
            refuse(given, ("frac", "split_seed", "seed"), f"with a task of {' '.join(MODULAR)}")
    if given.get("dtype") == "float64":
        import jax

        jax.config.update("jax_enable_x64", True)
    return analyze_one(given) if wants_one or not is_directory else analyze_directory(given)


def main(argv=None) -> int:
    try:
        return status_of("analyze.py", lambda: run(argv), (*COORDINATES, *ONE_NETWORK, *OF_A_FILE, "epoch", "dtype", "names"))
    except KeyboardInterrupt:
        print("stopped; what was measured is saved. The same command goes on from there.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
