"""Lay a run of ours beside a released one, epoch by epoch: a table on the terminal, and a figure.

python scripts/sweep.py --init torch --seeds 1:2 --wd 0.1 --epochs 108000 --out runs/wd_10-1
python scripts/rerun.py runs/wd_10-1 wd_10-1_mod_addition_loss_curve.pth --figure rerun.png
"""

import argparse
import sys
from pathlib import Path

from jaxgrok.config import BadInput


class Parser(argparse.ArgumentParser):
    """argparse, whose complaint is one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; --help lists what is accepted\n")


def parser() -> argparse.ArgumentParser:
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("run", type=Path, help="a directory that sweep.py made, with one run")
    p.add_argument("released", type=Path, help="a released .pth with its loss curves, or a .json with samples of some")
    p.add_argument("--name", help="which run of a .json")
    p.add_argument("--figure", type=Path, metavar="FILE", help="draw both (.png .pdf .svg)")
    return p


def main(argv=None) -> int:
    try:
        return run(parser().parse_args(argv))
    except BadInput as error:
        print(f"rerun.py: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"rerun.py: error: {error.filename}: cannot be read or written ({error.strerror})", file=sys.stderr)
        return 2


def run(args) -> int:
    from jaxgrok import figures, progress, released
    from jaxgrok.results import load

    if args.figure is not None and (args.figure.suffix not in (".png", ".pdf", ".svg") or not args.figure.absolute().parent.is_dir()):
        raise BadInput("--figure", str(args.figure), "a .png, .pdf or .svg file in a directory that exists")
    ours, theirs = released.of_run(load(args.run).curves()), released.read_released(args.released, args.name)
    progress.print_table(["quantity", "released", "ours"], released.comparison(ours, theirs))
    progress.print_table(["slingshots of our train loss", ""], released.spike_rows(ours))
    if args.figure is not None:
        figures.rerun_figure(ours, theirs).savefig(args.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
