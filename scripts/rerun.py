"""Compare a run with a released one: the command `jaxgrok rerun`, from a checkout."""

import sys

from jaxgrok.cli.rerun import main

if __name__ == "__main__":
    sys.exit(main())
