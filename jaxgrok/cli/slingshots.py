"""Find the slingshots of a sweep: sudden spikes of the train loss. Compare them with the smallest loss of float32.

The sweep must have recorded the train loss of every epoch, as it does by default. Writes tables/slingshots.csv, with a
row per run, and slingshots.md.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from jaxgrok.cli.parser import Parser, add_tables_flag, check_figure, status_of, write_tables

EPILOG = """\
example: a small network that shows slingshots within minutes
  jaxgrok sweep --preset precision_small --out runs/precision_small
  %(prog)s runs/precision_small --figure slingshots.png
"""


def parser(prog: str = "slingshots.py") -> Parser:
    p = Parser(prog=prog, description=__doc__, epilog=EPILOG)
    p.add_argument("run", type=Path, metavar="RUN_DIR", help="a directory that a sweep made")
    p.add_argument("--figure", type=Path, metavar="FILE", help="draw the train losses and the spikes (.png .pdf .svg)")
    add_tables_flag(p, "tables")
    return p


def run(args: Namespace) -> int:
    """Write and print the tables, and draw the figure; returns the exit status. Raises BadInput."""
    from jaxgrok import figures
    from jaxgrok.atomic import replace_file
    from jaxgrok.cli.show import print_damage, print_table
    from jaxgrok.store.results import load
    from jaxgrok.tables import slingshots, timing

    check_figure(args.figure)
    results = load(args.run)
    cells = slingshots.slingshots_of_cells(results)
    write_tables(lambda: slingshots.write_slingshot_tables(results, cells, args.tables), args.tables)
    print_table(*slingshots.readable_table(cells))
    print(slingshots.NOTE)
    print(slingshots.FLOOR_NOTE)
    if comparisons := slingshots.spike_comparison_rows(cells):
        print_table(timing.COMPARISON_HEADER, comparisons)
        print(slingshots.COMPARISON_NOTE)
    print(f"{slingshots.RELEASED_TITLE}:")
    print_table(*slingshots.RELEASED)
    if line := timing.waiting_line(results):
        print(line)
    if args.figure is not None:
        replace_file(args.figure, figures.slingshots_figure(cells).savefig)
    print(f"tables: {results.path / 'tables' if args.tables is None else args.tables}")
    return print_damage(results)


def main(argv: Sequence[str] | None = None, prog: str = "slingshots.py") -> int:
    return status_of(parser(prog), argv, run, ())
