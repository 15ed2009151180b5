"""`python -m rayjobs.reward` is `ortho reward`."""

import sys

from rayjobs.__main__ import main

sys.exit(main(["reward", *sys.argv[1:]]))
