"""Train a grid of runs: the command `jaxgrok sweep`, from a checkout."""

import sys
from functools import partial

from jaxgrok.cli import command

main = partial(command, "sweep")

if __name__ == "__main__":
    sys.exit(main())
