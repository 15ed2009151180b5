"""`python -m rayjobs.convert` is `ortho convert`."""

import sys

from rayjobs.__main__ import main

main(["convert", *sys.argv[1:]])
