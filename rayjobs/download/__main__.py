"""`python -m rayjobs.download` is `ortho download`."""

import sys

from rayjobs.cli import main

sys.exit(main(["download", *sys.argv[1:]]))
