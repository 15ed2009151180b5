"""`python -m rayjobs.evaluate` is `ortho evaluate`."""

import sys

from rayjobs.__main__ import main

main(["evaluate", *sys.argv[1:]])
