"""Find the spikes in a sweep's train losses: the command `jaxgrok slingshots`, from a checkout."""

import sys

from jaxgrok.cli.slingshots import main

if __name__ == "__main__":
    sys.exit(main())
