"""`python -m rayjobs.reward` is `ortho reward`."""

import sys

from rayjobs.__main__ import main

main(["reward", *sys.argv[1:]])
