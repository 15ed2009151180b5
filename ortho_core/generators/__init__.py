"""One-step generators: the protocol every job works with, and the loader that finds the right implementation."""

import logging

# Whoever imports bitsandbytes, diffusers and PEFT for two, is told of a kernel for CPUs that only a hub has, and that nothing
# here calls. Here, as it is before them.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
