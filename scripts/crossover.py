"""Find the smallest dataset on which a task is learned: the size at which half of the runs generalise within a budget.

Sizes are tried in rounds: first a geometric row from --low to --high, then inside the bracket that the last round left, until
neighbours differ by no more than --precision. Everything lies in one sweep directory, which sweep.py and analyze.py read too.
"""

import sys

from jaxgrok.cli.parser import Parser, add_run_flags, status_of
from jaxgrok.config import BadInput
from jaxgrok.training.grid import FIELDS, parse_list, whole

EPILOG = """\
examples:
  crossover.py --task addition5 --seeds 3
  crossover.py --task skip_trigram --seeds 8 --low 10 --high 400 --lr 0.00015
  crossover.py --task addition5 --seeds 8 --part "digit 5"        where the units digit alone is learned

The same command goes on where it stopped; more seeds or a wider range build on what is there.
"""


def parser() -> Parser:
    p = Parser(description=__doc__, epilog=EPILOG)
    search = p.add_argument_group("the search")
    search.add_argument(
        "--seeds", metavar="N|A:B|LIST", help="runs at each size: a count (0..N-1), a half-open range, or a list (default 8)"
    )
    search.add_argument("--low", metavar="N", help="smallest number of train examples (default 100)")
    search.add_argument("--high", metavar="N", help="largest (default 3000)")
    search.add_argument("--sizes", metavar="N", help="sizes a round (default 4)")
    search.add_argument("--precision", metavar="X", help="ratio of neighbouring sizes at which the search ends (default 1.1)")
    search.add_argument("--part", metavar="NAME", help="a part of the task, learned instead of the whole: `digit 5`")
    search.add_argument("--max-epochs", metavar="N", help="the budget of a run (default: 40000 at weight decay 1, longer below)")
    numbers = p.add_argument_group("numbers of every run, one each")
    for name, what in (("wd", "weight decay (default 1)"), ("lr", "learning rate (default 0.001)")):
        numbers.add_argument(f"--{name}", metavar="X", help=what)
    numbers.add_argument("--init-scale", metavar="X", help="factor of all initial weights (default 1)")
    numbers.add_argument("--eval-every", metavar="N", help="epochs between test evaluations (default 10, at most 1 %% of the run)")
    numbers.add_argument("--checkpoint-every", metavar="N", help="epochs between saved parameters (default 1 %% of the run)")
    add_run_flags(p)
    running = p.add_argument_group("running")
    running.add_argument("--out", metavar="DIR", help="default: runs/crossover- and a name made from the configuration")
    running.add_argument("--batch-runs", metavar="N", help="runs that train at once (default: what suits the device)")
    return p


def ratio(name: str, value) -> float:
    (number,) = parse_list(name, [value], float, "a ratio > 1")
    if not 1 < number < float("inf"):
        raise BadInput(name, value, "a ratio > 1")
    return number


def run(args: dict) -> int:
    settings = {field: args[field] for field in FIELDS if args.get(field) is not None}
    labels = {field: f"--{field.replace('_', '-')}" for field in (*settings, "part", "high")} | {"n_train": "--low or --high"}
    options = {name: whole(f"--{name}", args[name], 1) for name in ("low", "high") if args[name] is not None}
    options |= {"count": whole("--sizes", args["sizes"], 2)} if args["sizes"] is not None else {}
    options |= {"precision": ratio("--precision", args["precision"])} if args["precision"] is not None else {}
    options |= {"batch_runs": whole("--batch-runs", args["batch_runs"], 1)} if args["batch_runs"] is not None else {}

    import jax

    if "float64" in (args["dtype"], args["loss"]):
        jax.config.update("jax_enable_x64", True)
    from jaxgrok import figures
    from jaxgrok import search as crossover
    from jaxgrok.cli import show as progress
    from jaxgrok.store.results import load
    from jaxgrok.tables import sizes as size_tables
    from jaxgrok.tables import timing as report
    from jaxgrok.training import sweep as sweeping

    status = 0
    try:
        shown = {"watch": progress.Watch, "round_done": progress.show_sizes}
        path = crossover.search(settings, args["out"], part=args["part"], labels=labels, **options, **shown)
    except sweeping.Interrupted as stop:
        path, status = stop.path, 130
        print(f"stopped; everything is saved in {path}. The same command goes on from there.", file=sys.stderr)
    results = load(path)
    figures.write_figures(results, report.write_tables(results))
    sizes = size_tables.sizes_of(results, args["part"])
    size_tables.write_size_tables(results, sizes)
    if sizes.of_sizes:
        figures.write_size_figures(results, sizes)
    print(size_tables.NOTE)
    print(f"tables, figures, checkpoints: {path}")
    return status


def main(argv=None) -> int:
    args = vars(parser().parse_args(argv))
    return status_of("crossover.py", lambda: run(args), (*FIELDS, "out", "part"))


if __name__ == "__main__":
    sys.exit(main())
