"""One-step generators: the protocol every job works with, and the loader that finds the right implementation."""

from ortho_core.generators.base import Condition, OneStepGenerator, load_generator, model_fingerprint

__all__ = ["Condition", "OneStepGenerator", "load_generator", "model_fingerprint"]
