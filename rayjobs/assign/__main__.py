"""`python -m rayjobs.assign` is `ortho assign`."""

import sys

from rayjobs.cli import main

sys.exit(main(["assign", *sys.argv[1:]]))
