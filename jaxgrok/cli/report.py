"""Write the page of a sweep: one HTML file to look at, which needs no network and no server.

It shows what was run and when its phases came, every run's curves, and, of an analysed sweep, the circuit over training
and the network at work.
"""

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxgrok.cli.parser import Parser, status_of
from jaxgrok.config import BadInput

if TYPE_CHECKING:
    from jaxgrok.store.results import Results

EPILOG = """\
examples:
  %(prog)s runs/quick runs/frac            writes report.html into each of them
  %(prog)s runs/frac --page /tmp/frac.html the same of a directory that cannot be written
  %(prog)s runs/quick --live               follows a sweep while it trains, to its end or to Ctrl-C
"""
LIVE_SECONDS = 5  # between looks at what a sweep has saved; it saves about once a minute


def parser(prog: str = "report.py") -> Parser:
    p = Parser(prog=prog, description=__doc__, epilog=EPILOG)
    p.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="a directory that a sweep made")
    p.add_argument("--page", type=Path, metavar="FILE", help="write the page here (.html), not into the run directory")
    live = "write it again whenever the sweep has saved; an open page loads itself anew"
    p.add_argument("--live", action="store_true", help=live)
    return p


def run(args: Namespace) -> int:
    """Write the pages; returns the exit status. Raises BadInput."""
    from jaxgrok.cli.show import print_damage
    from jaxgrok.report import write_page
    from jaxgrok.store.results import load

    if args.page is not None and (args.page.suffix != ".html" or not args.page.absolute().parent.is_dir()):
        raise BadInput("--page", str(args.page), "a name that ends in .html, in a directory that exists")
    for flag, given in (("--page", args.page is not None), ("--live", args.live)):
        if given and len(args.runs) > 1:
            raise BadInput("RUN_DIR", f"{len(args.runs)} directories", f"one, with {flag}")
    all_results = [load(path) for path in args.runs]
    for results in all_results:
        print(f"page: {write_page(results, args.page, live=args.live and _trains(results))}", flush=True)
    if args.live:
        all_results = [_follow(all_results[0], args.page)]
    return max(map(print_damage, all_results))


def _follow(results: "Results", page: Path | None) -> "Results":
    """Write the page of a sweep again whenever it has saved, until all its runs are trained."""
    from jaxgrok.report import write_page
    from jaxgrok.store.results import load

    try:
        while _trains(results):
            time.sleep(LIVE_SECONDS)
            again = load(results.path)
            if _saved(again) != _saved(results):
                write_page(again, page, live=True)
            results = again
    finally:
        write_page(results, page)  # which no longer loads itself anew
    return results


def _trains(results: "Results") -> bool:
    """Whether any run has yet to come to its end."""
    from jaxgrok.store.records import Status

    return any(record.status not in (Status.TRAINED, Status.ENDED) for record in results.runs)


def _saved(results: "Results") -> list[str]:
    """What tells one save of a sweep from the next."""
    return [batch.source for batch in results.batches.values()]


def main(argv: Sequence[str] | None = None, prog: str = "report.py") -> int:
    saved = "the page is as it was written last."
    return status_of(parser(prog), argv, run, ("page", "live"), saved=saved)
