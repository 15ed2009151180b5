"""`python -m rayjobs.generate` is `ortho generate`."""

import sys

from rayjobs.__main__ import main

main(["generate", *sys.argv[1:]])
