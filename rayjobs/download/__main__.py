"""`python -m rayjobs.download` is `ortho download`."""

import sys

from rayjobs.__main__ import main

sys.exit(main(["download", *sys.argv[1:]]))
