"""`python -m rayjobs.assign` is `ortho assign`."""

import sys

from rayjobs.__main__ import main

main(["assign", *sys.argv[1:]])
