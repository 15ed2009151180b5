"""`python -m rayjobs.sweep` is `ortho sweep`."""

import sys

from rayjobs.cli import main

sys.exit(main(["sweep", *sys.argv[1:]]))
