"""Train a grid of runs: the command `jaxgrok sweep`, from a checkout."""

import sys

from jaxgrok.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main())
