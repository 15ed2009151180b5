"""`python -m rayjobs.look` is `ortho look`."""

import sys

from rayjobs.__main__ import main

sys.exit(main(["look", *sys.argv[1:]]))
