"""One-step generators: the protocol that every job uses, and the loader that selects the implementation."""

import logging

# bitsandbytes, which diffusers and PEFT import, logs that a CPU kernel must be downloaded from a hub; Ortho never calls that
# kernel. The level is set here because this module is imported before them.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
