"""The E-step: a search for the noise that a model maps closest to a target image, with one orthogonal matrix per image."""
