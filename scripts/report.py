"""Write the page of a sweep: the command `jaxgrok report`, from a checkout."""

import sys
from functools import partial

from jaxgrok.cli import command

main = partial(command, "report")

if __name__ == "__main__":
    sys.exit(main())
