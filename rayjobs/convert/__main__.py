"""`python -m rayjobs.convert` is `ortho convert`."""

import sys

from rayjobs.cli import main

sys.exit(main(["convert", *sys.argv[1:]]))
