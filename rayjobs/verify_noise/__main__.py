"""`python -m rayjobs.verify_noise` is `ortho verify-noise`."""

import sys

from rayjobs.__main__ import main

main(["verify-noise", *sys.argv[1:]])
