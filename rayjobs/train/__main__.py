"""`python -m rayjobs.train` is `ortho train`."""

import sys

from rayjobs.__main__ import main

main(["train", *sys.argv[1:]])
