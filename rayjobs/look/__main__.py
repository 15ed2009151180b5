"""`python -m rayjobs.look` is `ortho look`."""

import sys

from rayjobs.__main__ import main

main(["look", *sys.argv[1:]])
