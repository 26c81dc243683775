"""Compare one of our runs with a released run, epoch by epoch: a table on the terminal, and a figure."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from jaxgrok.cli.parser import Parser, check_figure, status_of
from jaxgrok.config import BadInput

EPILOG = """\
example: train a released run again, from its own initial weights and on its own split
  jaxgrok sweep --init torch --seeds 1:2 --wd 0.1 --epochs 108000 --out runs/wd_10-1
  %(prog)s runs/wd_10-1 wd_10-1_mod_addition_loss_curve.pth --figure rerun.png
"""


def parser(prog: str = "rerun.py") -> Parser:
    p = Parser(prog=prog, description=__doc__, epilog=EPILOG)
    p.add_argument("run", type=Path, metavar="RUN_DIR", help="a directory that a sweep made, with one run")
    released = "a released .pth file with its loss curves, or a .json file with samples of some runs"
    p.add_argument("released", type=Path, metavar="RELEASED", help=released)
    p.add_argument("--name", help="which run of a .json file")
    p.add_argument("--figure", type=Path, metavar="FILE", help="draw both runs (.png .pdf .svg)")
    return p


def run(args: Namespace) -> int:
    """Print the comparison, and draw the figure; returns the exit status. Raises BadInput."""
    from jaxgrok import figures
    from jaxgrok.atomic import replace_file
    from jaxgrok.cli.show import print_damage, print_table
    from jaxgrok.store.results import load
    from jaxgrok.tables import released

    check_figure(args.figure)
    results = load(args.run)
    if len(results.runs) > 1:
        raise BadInput("run directory", str(args.run), f"one run, not {len(results.runs)}")
    ours, theirs = released.losses_of(results.curves()), released.read_released(args.released, args.name)
    print_table(["quantity", "released", "ours"], released.comparison(ours, theirs))
    print_table(["slingshots of our train loss", ""], released.spike_rows(ours))
    if args.figure is not None:
        replace_file(args.figure, figures.rerun_figure(ours, theirs).savefig)
    return print_damage(results)


def main(argv: Sequence[str] | None = None, prog: str = "rerun.py") -> int:
    return status_of(parser(prog), argv, run, ("name",))
