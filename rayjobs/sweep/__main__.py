"""`python -m rayjobs.sweep` is `ortho sweep`."""

import sys

from rayjobs.__main__ import main

main(["sweep", *sys.argv[1:]])
