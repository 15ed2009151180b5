"""One-step generators: the protocol every job works with, and the loader that finds the right implementation."""

from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.protocol import Condition, OneStepGenerator

__all__ = ["Condition", "ModelFolder", "OneStepGenerator", "load_generator"]
