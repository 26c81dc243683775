"""Find the slingshots of a sweep's train losses and lay them beside the floor of float32: tables, and a figure.

python scripts/sweep.py sweeps/precision_small.toml --out runs/precision_small
python scripts/slingshots.py runs/precision_small --figure slingshots.png

Of any sweep that recorded the train loss of every epoch. Writes tables/slingshots.csv, a row per run, and slingshots.md.
"""

import sys
from pathlib import Path

from jaxgrok.cli.parser import Parser, check_figure, status_of


def parser() -> Parser:
    p = Parser(description=__doc__)
    p.add_argument("run", type=Path, metavar="RUN_DIR", help="a directory that sweep.py made")
    p.add_argument("--figure", type=Path, metavar="FILE", help="draw the train losses and the spikes (.png .pdf .svg)")
    return p


def run(args) -> int:
    from jaxgrok import figures
    from jaxgrok.cli import show as progress
    from jaxgrok.store.results import load
    from jaxgrok.tables import slingshots
    from jaxgrok.tables import timing as report

    check_figure(args.figure)
    results = load(args.run)
    cells = slingshots.cells(results)
    slingshots.write_tables(results, cells)
    progress.print_table(*slingshots.readable_table(cells))
    print(slingshots.NOTE)
    print(slingshots.FLOOR_NOTE)
    comparisons = slingshots.comparison_rows(cells)
    if comparisons:
        progress.print_table(slingshots.COMPARISON_HEADER, comparisons)
    print(f"{slingshots.RELEASED_TITLE}:")
    progress.print_table(*slingshots.RELEASED)
    if waiting := report.waiting(results, cells):
        print(waiting)
    if args.figure is not None:
        figures.slingshots_figure(cells).savefig(args.figure)
    print(f"tables: {results.path / 'tables'}")
    return 0


def main(argv=None) -> int:
    return status_of("slingshots.py", lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
