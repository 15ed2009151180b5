"""`python -m rayjobs.train_gan` is `ortho train-gan`."""

import sys

from rayjobs.__main__ import main

sys.exit(main(["train-gan", *sys.argv[1:]]))
