"""Write the page of a sweep: one HTML file to look at, which needs no network and no server.

It shows what was run and when its phases came, every run's curves, and, of an analysed sweep, the circuit over training
and the network at work.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from jaxgrok.cli.parser import Parser, status_of
from jaxgrok.config import BadInput

EPILOG = """\
examples:
  %(prog)s runs/quick                      writes runs/quick/report.html
  %(prog)s runs/frac --page /tmp/frac.html the same of a directory that cannot be written
"""


def parser(prog: str = "report.py") -> Parser:
    p = Parser(prog=prog, description=__doc__, epilog=EPILOG)
    p.add_argument("run", type=Path, metavar="RUN_DIR", help="a directory that a sweep made")
    p.add_argument("--page", type=Path, metavar="FILE", help="write the page here (.html), not into the run directory")
    return p


def run(args: Namespace) -> int:
    """Write the page; returns the exit status. Raises BadInput."""
    from jaxgrok.cli.show import print_damage
    from jaxgrok.report import write_page
    from jaxgrok.store.results import load

    if args.page is not None and args.page.suffix != ".html":
        raise BadInput("--page", str(args.page), "a name that ends in .html")
    results = load(args.run)
    print(f"page: {write_page(results, args.page)}")
    return print_damage(results)


def main(argv: Sequence[str] | None = None, prog: str = "report.py") -> int:
    return status_of(parser(prog), argv, run, ("page",))
