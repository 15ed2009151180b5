"""`python -m rayjobs.assign` is `ortho assign`."""

import sys

from rayjobs.__main__ import main

sys.exit(main(["assign", *sys.argv[1:]]))
