"""`python -m rayjobs VERB` is `ortho VERB`."""

import sys

from rayjobs.cli import main

sys.exit(main())
