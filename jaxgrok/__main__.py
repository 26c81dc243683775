"""`python -m jaxgrok` is the command `jaxgrok`."""

import sys

from jaxgrok.cli import main

if __name__ == "__main__":
    sys.exit(main())
