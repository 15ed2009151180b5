"""`python -m rayjobs.em` is `ortho em`."""

import sys

from rayjobs.cli import main

sys.exit(main(["em", *sys.argv[1:]]))
