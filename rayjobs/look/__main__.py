"""`python -m rayjobs.look` is `ortho look`."""

import sys

from rayjobs.cli import main

sys.exit(main(["look", *sys.argv[1:]]))
