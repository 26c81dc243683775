"""Find the smallest dataset on which a task is learned: the command `jaxgrok crossover`, from a checkout."""

import sys
from functools import partial

from jaxgrok.cli import command

main = partial(command, "crossover")

if __name__ == "__main__":
    sys.exit(main())
