"""`python -m rayjobs.download` is `ortho download`."""

import sys

from rayjobs.__main__ import main

main(["download", *sys.argv[1:]])
