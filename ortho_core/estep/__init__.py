"""The E-step: the noise that a model maps closest to a target image, one orthogonal matrix per image."""
