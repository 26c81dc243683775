"""Train a grid of runs, and print when each phase came: memorisation, grokking, and what lies between.

A sweep trains every combination of the listed values, each with several seeds, many runs at once. The defaults are the
grokking paper's main experiment: addition modulo 113 on a one-layer transformer, with 30 % of the pairs and AdamW.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxgrok
from jaxgrok import stopping
from jaxgrok.cli import machine
from jaxgrok.cli.parser import RARE, Parser, add_cache_flag, add_run_flags, flag_of, status_of
from jaxgrok.config import BadInput

if TYPE_CHECKING:
    from jaxgrok.store.files import Shard
    from jaxgrok.training.grid import Sweep

EPILOG = """\
examples:
  %(prog)s --preset quick                          a small network that groks while you wait
  %(prog)s --seeds 32 --wd 0.1,1.0                 the paper's setting, 64 runs
  %(prog)s sweeps/data_fraction.toml --seeds 8 --out runs/frac
  %(prog)s --seeds 8 --until-settled --plan        print what this would cost; train nothing

Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 save and end a sweep within half a minute; a second one ends it at once.
The same command resumes an interrupted sweep. More seeds, more values of an axis or more epochs extend a sweep in its
directory. The seed of a run fixes its initial weights, its train/test split (Python's random.seed, as in the authors'
code) and its random labels, or the examples of a task that draws them. An epoch is one update of the weights.
"""
RARE_HERE = frozenset(
    {"max_epochs", "train_every", "no_compilation_cache", "distributed", "coordinator", "num_processes", "process_id"}
)
LENGTH = "40000 at weight decay 1 and above; 40000 / wd below, at most 150000; unlimited data: 6000"


def sweeps_dir() -> Path:
    """The folder of the presets: in an installed package, or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "sweeps"
    return installed if installed.is_dir() else package.parent / "sweeps"


def presets() -> list[str]:
    """The names of the presets."""
    return sorted(file.stem for file in sweeps_dir().glob("*.toml"))


def parser(prog: str = "sweep.py") -> Parser:
    p = Parser(RARE | RARE_HERE, prog=prog, description=__doc__, epilog=EPILOG)
    p.add_argument("--version", action="version", version=f"jaxgrok {jaxgrok.__version__}")
    what = p.add_argument_group("what to train")
    what.add_argument("file", nargs="?", type=Path, help="a sweep file (TOML); flags override its values")
    what.add_argument("--preset", metavar="NAME", help=f"a sweep file that comes with jaxgrok: {', '.join(presets())}")
    grid = p.add_argument_group("the grid: every combination is trained; LIST is one value or a comma list")
    grid.add_argument(
        "--seeds", metavar="N|A:B|LIST", help="a count (0..N-1), a half-open range, or a list (default 8)"
    )
    grid.add_argument("--wd", metavar="LIST", help="weight decay, on every parameter (default 1.0)")
    grid.add_argument(
        "--frac", metavar="LIST", help="tasks modulo p and on groups: fraction of all pairs to train on (default 0.3)"
    )
    n_train = "tasks that draw: number of train examples, or `unlimited`: fresh ones every step (default)"
    grid.add_argument("--n-train", metavar="LIST", help=n_train)
    grid.add_argument("--lr", metavar="LIST", help="learning rate (default 0.001)")
    grid.add_argument("--init-scale", metavar="LIST", help="factor of all initial weights (default 1)")
    add_run_flags(p)
    length = p.add_argument_group("how long to train, and how often to evaluate and save")
    length.add_argument("--epochs", metavar="N", help=f"length of a run (default: {LENGTH})")
    settled = "end a run that grokked at epoch g once it has trained to max(1.5 g, g + 2000)"
    length.add_argument("--until-settled", action="store_true", default=None, help=settled)
    length.add_argument("--max-epochs", metavar="N", help="with --until-settled: the most (default as for --epochs)")
    length.add_argument(
        "--eval-every", metavar="N", help="epochs between evaluations (default 10, at most 1 %% of a run)"
    )
    length.add_argument("--train-every", metavar="N", help="epochs between recorded train losses (default 1)")
    length.add_argument("--checkpoint-every", metavar="N", help="epochs between checkpoints (default 1 %% of a run)")
    running = p.add_argument_group("running; these change results by rounding at most")
    running.add_argument("--out", metavar="DIR", help="the sweep's directory (default: runs/ and a name of its own)")
    running.add_argument("--batch-runs", metavar="N", help="runs to train at once (default: what suits the device)")
    shard = "train the i-th of n parts of the sweep, i from 0 to n-1; others fill the same directory at the same time"
    running.add_argument("--shard", metavar="I/N", help=shard)
    hosts = p.add_argument_group("many processes in one job; each trains a shard of its own on its local devices")
    known = "join the processes that Slurm, Open MPI, a TPU pod or GKE has started"
    hosts.add_argument("--distributed", action="store_true", help=known)
    elsewhere = "elsewhere, with --distributed: the address of process 0, the same for all"
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help=elsewhere)
    hosts.add_argument("--num-processes", metavar="N", help="how many processes there are")
    hosts.add_argument("--process-id", metavar="I", help="which of them this one is, from 0")
    add_cache_flag(running)
    running.add_argument("--plan", action="store_true", help="print batches, FLOPs, time and disk space; train nothing")
    return p


def chosen(args: dict[str, Any]) -> "Sweep":
    """The sweep that the flags, and the file or preset, describe. Raises BadInput."""
    from jaxgrok.training.grid import FIELDS, sweep_from

    flags = {field: args[field] for field in FIELDS if field in args}
    labels = {field: flag_of(field) for field, value in flags.items() if value is not None}
    file, preset = args["file"], args["preset"]
    if preset is not None:
        if file is not None:
            raise BadInput("--preset", preset, f"a preset or a file, not both ({file})")
        if preset not in presets():
            raise BadInput("--preset", preset, " ".join(presets()))
        file = sweeps_dir() / f"{preset}.toml"
    return sweep_from(file, flags, labels)


def shard_of(args: dict[str, Any]) -> "Shard | None":
    """The part of the sweep that this process trains; None means all of it. Joins the other processes of the job if
    `--distributed` was given. Raises BadInput."""
    from jaxgrok.store.files import Shard
    from jaxgrok.training import hosts
    from jaxgrok.training.grid import whole

    if args["distributed"]:
        if args["shard"] is not None:
            raise BadInput(
                "--shard", args["shard"], "without --distributed, which gives each process a shard of its own"
            )
        count, index = (
            None if args[name] is None else whole(flag_of(name), args[name], least)
            for name, least in (("num_processes", 1), ("process_id", 0))
        )
        return hosts.join(args["coordinator"], count, index)
    for name in ("coordinator", "num_processes", "process_id"):
        if args[name] is not None:
            raise BadInput(flag_of(name), args[name], "with --distributed")
    if args["shard"] is None:
        return None
    accepted = "I/N, the I-th of N parts, I from 0 to N-1"
    parts = args["shard"].split("/")
    if len(parts) != 2 or not all(part.isascii() and part.isdecimal() and len(part) < 7 for part in parts):
        raise BadInput("--shard", args["shard"], accepted)
    index, count = map(int, parts)
    if not index < count:
        raise BadInput("--shard", args["shard"], accepted)
    return Shard(index, count)


def run(sweep: "Sweep", args: dict[str, Any]) -> int:
    """Train a sweep, or print its plan; returns the exit status."""
    import jax

    if any(config.needs_x64 for config in sweep.configs):
        jax.config.update("jax_enable_x64", True)
    machine.spread_over_cores()
    from jaxgrok.cli import live, show
    from jaxgrok.figures import write_figures
    from jaxgrok.report import write_page
    from jaxgrok.store.files import SweepFiles
    from jaxgrok.store.results import load
    from jaxgrok.tables.parts import write_part_tables
    from jaxgrok.tables.phase_diagram import write_phase_diagrams
    from jaxgrok.tables.timing import write_timing_tables
    from jaxgrok.training import sweep as sweeping
    from jaxgrok.training.grid import whole
    from jaxgrok.training.plan import describe

    batch_runs = None if args["batch_runs"] is None else whole("--batch-runs", args["batch_runs"], 1)
    shard = shard_of(args)
    if args["plan"]:
        plan = sweeping.prepare(sweep, args["out"], batch_runs, shard=shard)
        show.print_plan(describe(plan), plan)
        return 0
    status = 0
    try:
        with live.Watch() as watch:
            path = sweeping.sweep(sweep, args["out"], batch_runs=batch_runs, shard=shard, watch=watch)
    except sweeping.Interrupted as stop:
        path = stop.path
        status = stopping.report(f"everything is saved in {path}. The same command resumes from there.")
    with SweepFiles(path).summing_up():
        results = load(path)
        write_timing_tables(results)
        write_phase_diagrams(results)
        of_parts = write_part_tables(results)
        write_figures(results, of_parts)
        write_page(results)
    damaged = show.print_summary(results, of_parts)
    return status or damaged


def main(argv: Sequence[str] | None = None, prog: str = "sweep.py") -> int:
    saved = "what was saved before is intact. The same command resumes from there."
    return status_of(parser(prog), argv, lambda args: run(chosen(vars(args)), vars(args)), saved=saved)
