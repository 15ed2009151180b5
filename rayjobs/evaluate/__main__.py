"""`python -m rayjobs.evaluate` is `ortho evaluate`."""

import sys

from rayjobs.__main__ import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
