"""One-step generators: the protocol every job works with, and the loader that finds the right implementation."""

from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import model_fingerprint
from ortho_core.generators.protocol import Condition, OneStepGenerator

__all__ = ["Condition", "OneStepGenerator", "load_generator", "model_fingerprint"]
