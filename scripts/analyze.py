"""Measure what networks have learned: the command `jaxgrok analyze`, from a checkout."""

import sys
from functools import partial

from jaxgrok.cli import command

main = partial(command, "analyze")

if __name__ == "__main__":
    sys.exit(main())
