"""`ortho convert`: write a model as one file that other programs load, or as a diffusers folder."""
