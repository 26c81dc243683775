"""Reproduce the claims of the post: the command `jaxgrok reproduce`, from a checkout."""

import sys
from functools import partial

from jaxgrok.cli import command

main = partial(command, "reproduce")

if __name__ == "__main__":
    sys.exit(main())
