"""`python -m rayjobs.em` is `ortho em`."""

import sys

from rayjobs.__main__ import main

main(["em", *sys.argv[1:]])
