"""`python -m rayjobs.train_gan` is `ortho train-gan`."""

import sys

from rayjobs.__main__ import main

main(["train-gan", *sys.argv[1:]])
