"""`python -m rayjobs.verify_noise` is `ortho verify-noise`."""

import sys

from rayjobs.cli import main

sys.exit(main(["verify-noise", *sys.argv[1:]]))
