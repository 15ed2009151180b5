"""`ortho generate`: images from a model folder."""
