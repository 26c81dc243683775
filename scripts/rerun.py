"""Lay a run of ours beside a released one, epoch by epoch: a table on the terminal, and a figure.

python scripts/sweep.py --init torch --seeds 1:2 --wd 0.1 --epochs 108000 --out runs/wd_10-1
python scripts/rerun.py runs/wd_10-1 wd_10-1_mod_addition_loss_curve.pth --figure rerun.png
"""

import sys
from pathlib import Path

from jaxgrok.cli.parser import Parser, check_figure, status_of
from jaxgrok.config import BadInput


def parser() -> Parser:
    p = Parser(description=__doc__)
    p.add_argument("run", type=Path, help="a directory that sweep.py made, with one run")
    p.add_argument("released", type=Path, help="a released .pth with its loss curves, or a .json with samples of some")
    p.add_argument("--name", help="which run of a .json")
    p.add_argument("--figure", type=Path, metavar="FILE", help="draw both (.png .pdf .svg)")
    return p


def run(args) -> int:
    from jaxgrok import figures
    from jaxgrok.cli import show as progress
    from jaxgrok.store.results import load
    from jaxgrok.tables import released

    check_figure(args.figure)
    results = load(args.run)
    if len(results.runs) > 1:
        raise BadInput("run directory", str(args.run), f"one run, not {len(results.runs)}")
    ours, theirs = released.of_run(results.curves()), released.read_released(args.released, args.name)
    progress.print_table(["quantity", "released", "ours"], released.comparison(ours, theirs))
    progress.print_table(["slingshots of our train loss", ""], released.spike_rows(ours))
    if args.figure is not None:
        figures.rerun_figure(ours, theirs).savefig(args.figure)
    return 0


def main(argv=None) -> int:
    return status_of("rerun.py", lambda: run(parser().parse_args(argv)), ("name",))


if __name__ == "__main__":
    sys.exit(main())
