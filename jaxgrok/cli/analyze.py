"""Measure what networks have learned: every checkpoint of a sweep, or one file of weights.

For a sweep directory, all measures of the grokking paper are computed at every checkpoint of every run: key
frequencies, restricted and excluded loss, ablations. Tables and figures are written into the directory. For a file of
weights, or one run of a directory, the same measures are computed of one network.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its idle threads spin beside those of jax

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxgrok.cli.parser import (
    Parser,
    add_cache_flag,
    add_network_flags,
    add_tables_flag,
    flag_of,
    status_of,
    write_tables,
)
from jaxgrok.config import CHOICES, BadInput, task_of
from jaxgrok.task_names import MODULAR, is_operation

EPILOG = """\
examples:
  %(prog)s runs/frac                                       every measure of every checkpoint; tables and figures
  %(prog)s runs/frac --tables /tmp/frac                    the same of a directory that cannot be written
  %(prog)s runs/frac --seed 3 --frac 0.3 --json out.json   one network of it
  %(prog)s runs/frac --run 7 --epoch 8000 --export net.pth --names transformer_lens
  %(prog)s weights.pth --frac 0.3 --split-seed 1 --json out.json --figures circuits
  %(prog)s weights.pth --task induction --residual-factor 2
  %(prog)s demo.pth --entry checkpoints[-1] --split torch:598   one network of several, on a split drawn by torch
  %(prog)s demo.pth --entry checkpoints --json out.json    every network of a list, with the keys of the last
  %(prog)s weights.safetensors --names names.toml          weights under names of another program
  %(prog)s --logits logits.npy --frac 0.3                  logits [p, p, classes] of any network

Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 save and end an analysis within half a minute; a second one ends it at once.
The same command resumes an interrupted analysis. The exit status is 1 if a checkpoint had to be skipped, because it is
missing or damaged. A file of weights is read as data; nothing in it is executed.
"""
SKIPPED = 1  # the exit status if a checkpoint could not be read
NAMES = ("authors", "transformer_lens")
READ_NAMES = (*NAMES, "transposed")
OF_ONE_NETWORK = ("json", "export", "figures")  # flags that ask for one network
COORDINATES = ("run", "seed", "frac", "wd", "lr")
SEQUENCES = ("seq_len", "repeat_len", "n_repeats", "n_tokens")
OF_NETWORKS = ("residual_factor", "sequence", "attention", "attn_coeff", "tied")
OF_A_FILE = ("entry", "split", "split_seed", "task", "act", *OF_NETWORKS, *SEQUENCES)
OF_LOGITS = ("logits", "p", "task", "frac", "split", "split_seed", "seed", "dtype", "json")


def parser(prog: str = "analyze.py") -> Parser:
    p = Parser(prog=prog, description=__doc__, epilog=EPILOG)
    formats = ".pth .pt .ckpt .bin .safetensors .npz .msgpack, or the folder of an orbax checkpoint"
    target = f"a directory that a sweep made, or a file of weights: {formats}"
    p.add_argument("target", type=Path, nargs="?", help=target)
    p.add_argument("--dtype", metavar="NAME", help=f"{' '.join(CHOICES['dtype'])} of the analysis (default float32)")
    everywhere = "measure random controls at every checkpoint, not only in each run's last (twice the time)"
    p.add_argument("--all-controls", action="store_true", default=None, help=everywhere)
    add_tables_flag(p, "tables and figures")
    add_cache_flag(p)
    one = p.add_argument_group("one network; with any of these flags nothing else is done")
    one.add_argument("--json", metavar="FILE", type=Path, help="write its measures")
    one.add_argument("--export", metavar="FILE", type=Path, help="write its weights: .pth .safetensors .npz")
    one.add_argument("--figures", metavar="DIR", type=Path, help="draw its circuits into a folder")
    names = "names of the weights (default: authors when written; when read, what fits); FILE.toml maps other names"
    p.add_argument("--names", metavar="NAME|FILE", help=f"{' '.join(NAMES)}: {names}")
    run = p.add_argument_group("which network of a directory")
    run.add_argument("--run", metavar="N", help="its number in timings.csv; or give its coordinates:")
    run.add_argument(
        "--seed", metavar="N", help="its seed; for a file: seed of random labels (default: --split-seed, or 0)"
    )
    run.add_argument("--wd", metavar="X", help="its weight decay")
    run.add_argument("--lr", metavar="X", help="its learning rate")
    run.add_argument("--epoch", metavar="N", help="a saved epoch (default: the last)")
    file = p.add_argument_group("what the network in a file was trained on")
    entry = "which network, if the file holds several: ema; checkpoints[400] of a list; checkpoints for all of it"
    file.add_argument("--entry", metavar="KEY", help=entry)
    frac = "fraction of the pairs (default 0.3), 1 for all of them; or which run of a directory"
    file.add_argument("--frac", metavar="X", help=frac)
    split = "another split: torch:SEED (its randperm), or FILE[:KEY] of pairs (default: what the file has recorded)"
    file.add_argument("--split", metavar="SPLIT", help=split)
    file.add_argument("--split-seed", metavar="N", help="seed of the train/test split (default 0)")
    file.add_argument("--task", metavar="NAME", help=f"{' '.join(CHOICES['task'])} (default add)")
    act = "default: what the file has recorded, or relu"
    file.add_argument("--act", metavar="NAME", help=f"{' '.join(CHOICES['act'])} ({act})")
    add_network_flags(file)
    for name in SEQUENCES:
        file.add_argument(flag_of(name), metavar="N", help="of induction or skip_trigram, as for a sweep")
    logits = p.add_argument_group("logits alone, of any network")
    of_logits = "logits on all pairs (a, b), .npy of shape (p, p, p) or (p, p, p + 1); no other target"
    logits.add_argument("--logits", metavar="FILE", type=Path, help=of_logits)
    logits.add_argument("--p", metavar="N", help="their modulus (default: the file's first axis)")
    return p


def _fraction(flag: str, value: str) -> tuple[float, ...]:
    from jaxgrok.training.grid import parse_list

    found = parse_list(flag, value, float, "a fraction > 0, at most 1")
    if not all(0 < x <= 1 for x in found):
        raise BadInput(flag, value, "a fraction > 0, at most 1")
    return found


def _number(flag: str, value: str) -> tuple[float, ...]:
    from jaxgrok.training.grid import parse_list

    return parse_list(flag, value, float, "a number")


def checked(args: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, with numbers parsed and names checked. Raises BadInput, and names the flag."""
    from jaxgrok.training.grid import GRID_FIELDS, whole

    given = {name: value for name, value in args.items() if value is not None}
    for name in ("run", "seed", "epoch", "split_seed", "p", *SEQUENCES):
        if name in given:
            given[name] = whole(flag_of(name), given[name], 2 if name == "p" else 0)
    numbers: dict[str, Any] = {name: GRID_FIELDS[name] for name in ("wd", "lr")}
    numbers |= {"frac": _fraction, "residual_factor": _number, "attn_coeff": _number}
    for name, parse in numbers.items():
        if name in given:
            values = parse(flag_of(name), given[name])
            if len(values) > 1:
                raise BadInput(flag_of(name), given[name], "one number")
            given[name] = values[0]
    choices = {name: CHOICES[name] for name in ("dtype", "act", "sequence", "attention", "tied")}
    if "task" in given:
        given["task"] = task_of(given["task"])
    if not _is_map(given):
        choices["names"] = NAMES if "export" in given else READ_NAMES
    for name, accepted in choices.items():
        if name in given and given[name] not in accepted:
            raise BadInput(flag_of(name), given[name], " ".join(accepted))
    for name in ("json", "export"):
        if name in given and (not given[name].absolute().parent.is_dir() or given[name].is_dir()):
            raise BadInput(flag_of(name), str(given[name]), "a file in a directory that exists")
    return given


def _is_map(given: dict[str, Any]) -> bool:
    return given.get("names", "").endswith(".toml")


def _refuse(given: dict[str, Any], names: Iterable[str], accepted: str) -> None:
    for name in names:
        if name in given:
            value = given[name]
            raise BadInput(flag_of(name), str(value) if isinstance(value, Path) else value, accepted)


def _check_combination(given: dict[str, Any], is_directory: bool, is_one: bool) -> None:
    """Raises BadInput for flags that do not go together, or not with the target."""
    if is_directory:
        _refuse(given, OF_A_FILE, "with a file of weights; the directory knows this of its runs")
        if not is_one:
            _refuse(given, ("epoch", *COORDINATES), "with --json, --export or --figures, which are of one network")
        if "export" not in given:
            _refuse(given, ("names",), "with --export, or a file of weights")
    else:
        _refuse(given, ("run", "epoch", "wd", "lr"), "with a directory; a file holds one network")
        if not is_operation(given.get("task", MODULAR[0])):
            _refuse(given, ("frac", "split", "split_seed", "seed"), f"with {' '.join(MODULAR)} or an expression")
    if is_one or not is_directory:
        _refuse(given, ("tables", "all_controls"), "with a directory, and without --json, --export or --figures")


def analyze_directory(given: dict[str, Any]) -> int:
    """Measure every checkpoint of a sweep, and write tables and figures."""
    from jaxgrok.cli import live, machine, show
    from jaxgrok.figures import (
        write_circuit_figures,
        write_figures,
        write_head_figures,
        write_representation_figures,
    )
    from jaxgrok.measures.checkpoints import analyze
    from jaxgrok.report import write_page
    from jaxgrok.tables.circuits import write_circuit_tables
    from jaxgrok.tables.heads import write_head_tables
    from jaxgrok.tables.parts import write_part_tables
    from jaxgrok.tables.phase_diagram import write_phase_diagrams
    from jaxgrok.tables.representations import write_representation_tables
    from jaxgrok.tables.timing import write_timing_tables

    machine.keep_memory()
    machine.spread_over_cores()
    tables = given.get("tables")
    with live.AnalysisWatch() as watch:
        dtype, everywhere = given.get("dtype", "float32"), given.get("all_controls", False)
        found = analyze(given["target"], dtype=dtype, all_controls=everywhere, watch=watch)
    results = found.results

    def write() -> None:
        write_timing_tables(results, tables)
        write_phase_diagrams(results, tables)
        of_parts = write_part_tables(results, tables)
        write_circuit_tables(results, tables)
        write_head_tables(results, tables)
        write_representation_tables(results, tables)
        write_figures(results, of_parts, tables)
        write_circuit_figures(results, tables)
        write_head_figures(results, tables)
        write_representation_figures(results, tables)
        write_page(results, None if tables is None else tables / "report.html")

    write_tables(write, tables)
    show.print_networks(found)
    print(f"page, tables, figures: {results.path if tables is None else tables}")
    # Tables and figures read what the analysis had no need to.
    skipped = dict.fromkeys([*found.skipped, *(damage.line for damage in results.damage)])
    for line in skipped:
        print(f"skipped: {line}")
    return SKIPPED if skipped else 0


def analyze_one(given: dict[str, Any], is_directory: bool) -> int:
    """Measure, draw or export one network."""
    from jaxgrok import figures
    from jaxgrok.atomic import replace_text
    from jaxgrok.cli import show
    from jaxgrok.measures import subjects
    from jaxgrok.nets import interop
    from jaxgrok.store.results import load

    if is_directory:
        coordinates = {name: given[name] for name in COORDINATES if name in given}
        subject = subjects.subject_of_run(load(given["target"]), given.get("epoch"), **coordinates)
    else:
        subject = subjects.subject_of_file(given["target"], **_of_file(given))
    if "export" in given:
        usual = NAMES[0] if subject.config.norm == "none" else NAMES[1]  # the authors' code has no norm
        names = usual if _is_map(given) else given.get("names", usual)
        interop.save(given["export"], subject.config, subject.params, names)
        if (factor := subject.config.residual_factor) != 1:
            print(f"the file does not hold the residual factor {factor:g}: give it where the weights are read")
    if set(given) & {"json", "figures"} or not set(given) & set(OF_ONE_NETWORK):
        dtype = given.get("dtype", "float32")
        measured = subjects.measure_subject(subject, dtype)
        if "json" in given:
            replace_text(given["json"], json.dumps(subjects.subject_to_json(subject, measured), indent=1) + "\n")
        if "figures" in given:
            config = subjects.config_for_analysis(subject.config, dtype)
            params = subjects.cast(subject.params, dtype)
            figures.write_network_figures(config, params, measured, given["figures"])
        show.print_network(subject.config, subjects.flatten(measured), subjects.remarks(subject, measured))
    return 0


def _of_file(given: dict[str, Any]) -> dict[str, Any]:
    """The flags that say what a file holds."""
    read = ("names",) if _is_map(given) or "export" not in given else ()  # else they are of what is written
    names = ("frac", "seed", *OF_A_FILE, *read)
    return {name: given[name] for name in names if name in given}


def analyze_list(given: dict[str, Any]) -> int | None:
    """Measure every network in a list of a file; None if --entry names no list."""
    from jaxgrok.atomic import replace_text
    from jaxgrok.cli import show
    from jaxgrok.measures import subjects

    of_list = subjects.subjects_of_list(given["target"], **_of_file(given))
    if not of_list:
        return None
    _refuse(given, ("export",), "with one network of the list: --entry NAME[N]")
    dtype = given.get("dtype", "float32")
    measured = [subjects.measure_subject(subject, dtype) for subject in of_list]
    if "json" in given:
        plain = [subjects.subject_to_json(*pair) for pair in zip(of_list, measured, strict=True)]
        replace_text(given["json"], json.dumps(plain, indent=1) + "\n")
    if "figures" in given:
        from jaxgrok.figures import write_list_figures

        epochs = [subject.about["epoch"] for subject in of_list if "epoch" in subject.about]
        if len(epochs) < len(of_list):
            print("the file names no epochs: figures over training count the networks of the list")
            epochs = list(range(len(of_list)))
        config = subjects.config_for_analysis(of_list[-1].config, dtype)
        write_list_figures(config, subjects.cast(of_list[-1].params, dtype), measured, epochs, given["figures"])
    show.print_list(of_list, measured)
    return 0


def analyze_logits(given: dict[str, Any]) -> int:
    """Measure the logits in a file."""
    from jaxgrok.atomic import replace_text
    from jaxgrok.cli import show
    from jaxgrok.measures import subjects

    names = ("p", "task", "frac", "split", "split_seed", "seed", "dtype")
    found = subjects.measure_logits(given["logits"], **{name: given[name] for name in names if name in given})
    if "json" in given:
        replace_text(given["json"], json.dumps(found.json, indent=1) + "\n")
    show.print_logits(found)
    return 0


def run(args: dict[str, Any]) -> int:
    """Analyse a directory, one network or logits, as the flags say; returns the exit status. Raises BadInput."""
    given = checked(args)
    if ("target" in given) == ("logits" in given):
        both = f"{given['target']} and --logits" if "target" in given else "nothing"
        raise BadInput("run directory or file", both, "a directory, a file of weights, or --logits FILE")
    target = given["target" if "target" in given else "logits"]
    if not os.path.exists(target):
        raise BadInput("run directory or file", str(target), "one that exists")
    if given.get("dtype") == "float64":
        import jax

        jax.config.update("jax_enable_x64", True)
    if "split" in given:
        _refuse(given, ("split_seed",), "without --split, which says it all")
    if "logits" in given:
        _refuse(given, set(given) - set(OF_LOGITS), "without --logits")
        return analyze_logits(given)
    _refuse(given, ("p",), "with --logits")
    is_one, is_directory = bool(set(given) & set(OF_ONE_NETWORK)), False
    if target.is_dir():
        from jaxgrok.nets import weight_files  # it takes a while to import

        is_directory = not weight_files.is_checkpoint_folder(target)
        if is_directory and not (target / "manifest.json").exists() and (inside := weight_files.checkpoints_in(target)):
            accepted = f"a directory that a sweep made, or the folder of one orbax checkpoint, such as {inside[-1]}"
            raise BadInput("run directory or file", str(target), accepted)
    _check_combination(given, is_directory, is_one)
    if "entry" in given and "[" not in given["entry"] and (status := analyze_list(given)) is not None:
        return status
    return analyze_one(given, is_directory) if is_one or not is_directory else analyze_directory(given)


def main(argv: Sequence[str] | None = None, prog: str = "analyze.py") -> int:
    saved = "what was measured is saved. The same command resumes from there."
    return status_of(parser(prog), argv, lambda args: run(vars(args)), saved=saved)
