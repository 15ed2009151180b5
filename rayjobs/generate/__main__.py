"""`python -m rayjobs.generate` is `ortho generate`."""

import sys

from rayjobs.__main__ import main

sys.exit(main(["generate", *sys.argv[1:]]))
