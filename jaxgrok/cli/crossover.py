"""Find the smallest dataset on which a task is learned: the size at which half of the runs generalise within a budget.

Sizes are tried in rounds. The first round spreads them geometrically from --low to --high. Each later round tries sizes
between those where few runs generalise and those where most do, until neighbours differ by a factor of --precision. All
runs are in one sweep directory, which the other commands read too.
"""

from collections.abc import Sequence
from typing import Any

from jaxgrok import stopping
from jaxgrok.cli import machine
from jaxgrok.cli.parser import RARE, Parser, add_cache_flag, add_run_flags, flag_of, status_of
from jaxgrok.config import BadInput, task_of
from jaxgrok.task_names import is_listed

EPILOG = """\
examples:
  %(prog)s --task addition5 --seeds 3
  %(prog)s --task skip_trigram --seeds 8 --low 10 --high 400 --lr 0.00015
  %(prog)s --task addition5 --seeds 8 --part "digit 5"        when the units digit alone is learned

Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 save and end a search within half a minute; a second one ends it at once.
The same command resumes an interrupted search. More seeds or a wider range extend a search in its directory.
"""


def parser(prog: str = "crossover.py") -> Parser:
    p = Parser(RARE, prog=prog, description=__doc__, epilog=EPILOG)
    search = p.add_argument_group("the search")
    seeds = "seeds at each size: a count (0..N-1), a half-open range, or a list (default 8)"
    search.add_argument("--seeds", metavar="N|A:B|LIST", help=seeds)
    search.add_argument("--low", metavar="N", help="smallest number of train examples (default 100)")
    search.add_argument("--high", metavar="N", help="largest number of train examples (default 3000)")
    search.add_argument("--sizes", metavar="N", help="sizes per round (default 4)")
    search.add_argument("--precision", metavar="X", help="ratio of sizes that ends the search (default 1.1)")
    search.add_argument("--part", metavar="NAME", help="count when this part of the task is learned, such as `digit 5`")
    budget = "the budget: longest training of a run (default: 40000 at weight decay 1, longer below)"
    search.add_argument("--max-epochs", metavar="N", help=budget)
    numbers = p.add_argument_group("numbers of every run, one value each")
    numbers.add_argument("--wd", metavar="X", help="weight decay (default 1)")
    numbers.add_argument("--lr", metavar="X", help="learning rate (default 0.001)")
    numbers.add_argument("--init-scale", metavar="X", help="factor of all initial weights (default 1)")
    every = "epochs between evaluations (default 10, at most 1 %% of a run)"
    numbers.add_argument("--eval-every", metavar="N", help=every)
    numbers.add_argument("--checkpoint-every", metavar="N", help="epochs between checkpoints (default 1 %% of a run)")
    add_run_flags(p)
    running = p.add_argument_group("running")
    running.add_argument("--out", metavar="DIR", help="the directory (default: runs/crossover- and a name of its own)")
    running.add_argument("--batch-runs", metavar="N", help="runs to train at once (default: what suits the device)")
    add_cache_flag(running)
    return p


def _ratio(name: str, value: str) -> float:
    from jaxgrok.training.grid import parse_list

    (number,) = parse_list(name, [value], float, "a ratio > 1")
    if not 1 < number < float("inf"):
        raise BadInput(name, value, "a ratio > 1")
    return number


def _options(args: dict[str, Any]) -> dict[str, Any]:
    """The options of `search` that were given as flags. Raises BadInput."""
    from jaxgrok.training.grid import MAX_SIZES, whole

    options: dict[str, Any] = {}
    for name in ("low", "high", "batch_runs"):
        if args[name] is not None:
            options[name] = whole(flag_of(name), args[name], 1)
    if args["sizes"] is not None:
        options["count"] = whole("--sizes", args["sizes"], 2, MAX_SIZES)
    if args["precision"] is not None:
        options["precision"] = _ratio("--precision", args["precision"])
    return options


def run(args: dict[str, Any]) -> int:
    """Search, and write tables and figures of what was found; returns the exit status. Raises BadInput."""
    from jaxgrok.training.grid import FIELDS

    settings = {field: args[field] for field in FIELDS if args.get(field) is not None}
    labels = {field: flag_of(field) for field in (*settings, "part", "high")} | {"n_train": "--low or --high"}
    if "task" in settings and is_listed(task_of(settings["task"])):
        raise BadInput("--task", settings["task"], "a task that draws its examples, such as addition5")
    options = _options(args)

    import jax

    if "float64" in (args["dtype"], args["loss"]):
        jax.config.update("jax_enable_x64", True)
    machine.spread_over_cores()
    from jaxgrok import figures
    from jaxgrok.cli import live, show
    from jaxgrok.search import search
    from jaxgrok.store.results import load
    from jaxgrok.tables import sizes as size_tables
    from jaxgrok.tables.timing import write_timing_tables
    from jaxgrok.training.sweep import Interrupted

    status = 0
    try:
        shown = {"watch": live.Watch, "round_done": show.print_sizes}
        path = search(settings, args["out"], part=args["part"], labels=labels, **options, **shown)
    except Interrupted as stop:
        path = stop.path
        status = stopping.report(f"everything is saved in {path}. The same command resumes from there.")
    results = load(path)
    write_timing_tables(results)
    figures.write_figures(results, ())
    sizes = size_tables.sizes_of(results, args["part"])
    size_tables.write_size_tables(results, sizes)
    if sizes.of_sizes:
        figures.write_size_figures(results, sizes)
    print(size_tables.NOTE)
    damaged = show.print_damage(results)
    print(f"tables, figures, checkpoints: {path}")
    return status or damaged


def main(argv: Sequence[str] | None = None, prog: str = "crossover.py") -> int:
    saved = "what was saved before is intact. The same command resumes from there."
    return status_of(parser(prog), argv, lambda args: run(vars(args)), saved=saved)
