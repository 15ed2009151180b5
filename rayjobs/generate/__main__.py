"""`python -m rayjobs.generate` is `ortho generate`."""

import sys

from rayjobs.cli import main

sys.exit(main(["generate", *sys.argv[1:]]))
