"""What every command has in common: how it complains. One line, status 2, no traceback."""

import argparse
import sys
from collections.abc import Callable

from jaxgrok.config import BadInput


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose complaint is one line."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; --help lists what is accepted\n")


def status_of(name: str, run: Callable[[], int], flags=()) -> int:
    """What a command exits with: `run()`, or 2 once bad input or a file that cannot be read or written is named on standard error.

    flags: fields that the user gave as flags, so that `split_seed` is named `--split-seed`.
    """
    try:
        return run()
    except BadInput as error:
        flag = f"--{error.name.replace('_', '-')}" if error.name.replace("-", "_") in flags else error.name
        complaint = str(BadInput(flag, error.value, error.accepted))
    except OSError as error:
        complaint = f"{error.filename or 'file'}: cannot be read or written ({error.strerror or error})"
    print(f"{name}: error: {complaint}", file=sys.stderr)
    return 2
