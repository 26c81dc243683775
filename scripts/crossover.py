"""Find the smallest dataset on which a task is learned: the command `jaxgrok crossover`, from a checkout."""

import sys

from jaxgrok.cli.crossover import main

if __name__ == "__main__":
    sys.exit(main())
