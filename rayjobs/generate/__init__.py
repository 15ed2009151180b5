"""`ortho generate`: make images with a model."""
