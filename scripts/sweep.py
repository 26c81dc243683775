"""Train a sweep of grokking runs and print when each phase came. See --help, README.md and sweeps/."""

import sys
from pathlib import Path

import jaxgrok
from jaxgrok.cli.parser import Parser, add_run_flags, status_of
from jaxgrok.config import BadInput
from jaxgrok.training.grid import FIELDS, sweep_from, whole

SWEEPS = Path(__file__).resolve().parent.parent / "sweeps"
PRESETS = " ".join(sorted(file.stem for file in SWEEPS.glob("*.toml")))
LENGTH = "40000 at weight decay 1 and above, longer in proportion below, to 150000; unlimited data 6000"
EPILOG = """\
examples:
  sweep.py --seeds 32 --wd 0.1,1.0                 the paper's setting, 64 runs at once
  sweep.py --preset quick                          groks in 80 seconds on two cores
  sweep.py sweeps/data_fraction.toml --seeds 8 --out runs/frac
  sweep.py --seeds 8 --until-settled --plan        what it would cost; trains nothing

The same command goes on where it stopped. More seeds, more axis values or more epochs extend a sweep in its directory.
Every run starts from its seed alone: initial weights, split (Python's random.seed, as the authors do) and random labels, or the
examples of a task that draws them. An epoch is one update.
"""


def parser() -> Parser:
    p = Parser(description=__doc__, epilog=EPILOG)
    p.add_argument("--version", action="version", version=f"jaxgrok {jaxgrok.__version__}")
    what = p.add_argument_group("what to train")
    what.add_argument("file", nargs="?", type=Path, help="a sweep file (TOML); flags override what it says")
    what.add_argument("--preset", metavar="NAME", help=f"the file sweeps/NAME.toml: {PRESETS}")
    grid = p.add_argument_group("the grid: its product is trained")
    grid.add_argument("--seeds", metavar="N|A:B|LIST", help="a count (0..N-1), a half-open range, or a comma list (default 8)")
    grid.add_argument("--wd", metavar="LIST", help="weight decays, on every parameter (default 1.0)")
    grid.add_argument("--frac", metavar="LIST", help="modular tasks: fractions of all pairs that are trained on (default 0.3)")
    grid.add_argument("--n-train", metavar="LIST", help="other tasks: train examples, or `unlimited`, fresh ones every step (default)")
    grid.add_argument("--lr", metavar="LIST", help="learning rates (default 0.001)")
    grid.add_argument("--init-scale", metavar="LIST", help="factors of all initial weights (default 1)")
    add_run_flags(p)
    length = p.add_argument_group("how long, and how often to look")
    length.add_argument("--epochs", metavar="N", help=f"default: {LENGTH}")
    length.add_argument("--until-settled", action="store_true", default=None, help="end a run at max(1.5 g, g + 2000) once it grokked at g")
    length.add_argument("--max-epochs", metavar="N", help="with --until-settled: the most (default as for --epochs)")
    length.add_argument("--eval-every", metavar="N", help="epochs between test evaluations (default 10, at most 1 %% of the run)")
    length.add_argument("--train-every", metavar="N", help="record the train loss every N epochs (default 1)")
    length.add_argument("--checkpoint-every", metavar="N", help="epochs between saved parameters (default 1 %% of the run)")
    running = p.add_argument_group("running; these never change a result but by rounding")
    running.add_argument("--out", metavar="DIR", help="default: runs/ and a name made from the configuration")
    running.add_argument("--batch-runs", metavar="N", help="runs that train at once (default: what suits the device)")
    running.add_argument("--plan", action="store_true", help="print batches, FLOPs, time and disk, and stop")
    return p


def chosen(args: dict):
    """The sweep that the flags and the file or preset describe."""
    flags = {field: args[field] for field in FIELDS if field in args}
    labels = {field: f"--{field.replace('_', '-')}" for field, value in flags.items() if value is not None}
    file = args["file"]
    if args["preset"] is not None:
        if file is not None:
            raise BadInput("--preset", args["preset"], f"a preset or a file, not both ({file})")
        file = SWEEPS / f"{args['preset']}.toml"
        if not file.exists():
            raise BadInput("--preset", args["preset"], PRESETS)
    return sweep_from(file, flags, labels)


def main(argv=None) -> int:
    args = vars(parser().parse_args(argv))
    return status_of("sweep.py", lambda: run(chosen(args), args), (*FIELDS, "out"))


def run(sweep, args) -> int:
    import jax

    if any(config.needs_x64 for config in sweep.configs):
        jax.config.update("jax_enable_x64", True)
    from jaxgrok.cli import show as progress
    from jaxgrok.figures import write_figures
    from jaxgrok.tables import parts as part_tables
    from jaxgrok.tables import timing as report
    from jaxgrok.training import sweep as sweeping
    from jaxgrok.training.plan import describe

    batch_runs = None if args["batch_runs"] is None else whole("--batch-runs", args["batch_runs"], 1)
    if args["plan"]:
        progress.show_plan(describe(sweeping.prepare(sweep, args["out"], batch_runs)))
        return 0
    status = 0
    try:
        with progress.Watch() as watch:
            path = sweeping.sweep(sweep, args["out"], batch_runs=batch_runs, watch=watch)
    except sweeping.Interrupted as stop:
        path, status = stop.path, 130
        print(f"stopped; everything is saved in {path}. The same command goes on from there.", file=sys.stderr)
    results = jaxgrok.load(path)
    cells = report.write_tables(results)
    parts = part_tables.write_part_tables(results, cells)
    write_figures(results, cells, parts)
    progress.show_summary(results, cells, parts)
    return status


if __name__ == "__main__":
    sys.exit(main())
