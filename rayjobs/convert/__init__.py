"""`ortho convert`: a model as one file that other programs load."""
