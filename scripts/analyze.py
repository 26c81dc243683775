"""Measure what networks have learned: the command `jaxgrok analyze`, from a checkout."""

import sys

from jaxgrok.cli.analyze import main

if __name__ == "__main__":
    sys.exit(main())
