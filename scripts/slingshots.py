"""Find the slingshots of a sweep's train losses and lay them beside the floor of float32: tables, and a figure.

python scripts/sweep.py --p 23 --d-model 32 --frac 0.6 --lr 3e-3 --wd 0,1 --loss exact,float64,float32 --seeds 3 \\
    --epochs 6000 --out runs/spikes
python scripts/slingshots.py runs/spikes --figure slingshots.png

Of any sweep that recorded the train loss of every epoch. Writes tables/slingshots.csv, a row per run, and slingshots.md.
"""

import sys
from pathlib import Path

from jaxgrok.command import Parser, status_of
from jaxgrok.config import BadInput


def parser() -> Parser:
    p = Parser(description=__doc__)
    p.add_argument("run", type=Path, metavar="RUN_DIR", help="a directory that sweep.py made")
    p.add_argument("--figure", type=Path, metavar="FILE", help="draw the train losses and the spikes (.png .pdf .svg)")
    return p


def run(args) -> int:
    from jaxgrok import figures, progress, slingshots
    from jaxgrok.results import load

    if args.figure is not None and (args.figure.suffix not in (".png", ".pdf", ".svg") or not args.figure.absolute().parent.is_dir()):
        raise BadInput("--figure", str(args.figure), "a .png, .pdf or .svg file in a directory that exists")
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
    if slingshots.waiting(results, cells):
        print(slingshots.waiting(results, cells))
    if args.figure is not None:
        figures.slingshots_figure(cells).savefig(args.figure)
    print(f"tables: {results.path / 'tables'}")
    return 0


def main(argv=None) -> int:
    return status_of("slingshots.py", lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
