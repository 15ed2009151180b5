"""`python -m rayjobs.invert` is `ortho invert`."""

import sys

from rayjobs.cli import main

sys.exit(main(["invert", *sys.argv[1:]]))
