"""Compare a run with a released one: the command `jaxgrok rerun`, from a checkout."""

import sys
from functools import partial

from jaxgrok.cli import command

main = partial(command, "rerun")

if __name__ == "__main__":
    sys.exit(main())
