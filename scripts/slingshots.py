"""Find the spikes in a sweep's train losses: the command `jaxgrok slingshots`, from a checkout."""

import sys
from functools import partial

from jaxgrok.cli import command

main = partial(command, "slingshots")

if __name__ == "__main__":
    sys.exit(main())
