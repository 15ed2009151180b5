"""`python -m rayjobs.invert` is `ortho invert`."""

import sys

from rayjobs.__main__ import main

main(["invert", *sys.argv[1:]])
