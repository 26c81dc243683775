"""The commands: their flags, the live line, and what the terminal shows.

`main` is the entry point `jaxgrok`. Each command is a module with `parser()`, `run(...)` and `main(argv, prog)`; the
scripts of the repository start the same commands with `command`. A module is imported when its command is named, so
that the others cost no time, and signals are handled before that.
"""

import importlib
import sys
from collections.abc import Sequence

from jaxgrok import stopping

COMMANDS = {
    "sweep": "train a grid of runs, and print when each phase came",
    "analyze": "measure what networks have learned: a sweep, or one file of weights",
    "report": "write the page of a sweep: one HTML file to look at",
    "reproduce": "train and measure the claims of the post, and write each beside what was found",
    "crossover": "find the smallest dataset on which a task is learned",
    "slingshots": "find the spikes in a sweep's train losses",
    "rerun": "compare a run with a released one, epoch by epoch",
}


def _overview() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: jaxgrok COMMAND ...\n\nGrokking, measured over many seeds.\n\n"
        f"{listed}\n\njaxgrok COMMAND --help explains a command. Start with: jaxgrok sweep --preset quick"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run `jaxgrok COMMAND ...`; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return stopping.status_of(lambda: _run(arguments), until_exit=argv is None)


def command(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command as its script does, under the name of the script; returns the exit status."""

    def run() -> int:
        return importlib.import_module(f"jaxgrok.cli.{name}").main(argv)

    return stopping.status_of(run, until_exit=argv is None)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, *rest = arguments
    if name == "--version":
        from jaxgrok import __version__

        print(f"jaxgrok {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"jaxgrok: error: command: got {name!r}; accepted: {' '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"jaxgrok.cli.{name}").main(rest, f"jaxgrok {name}")
