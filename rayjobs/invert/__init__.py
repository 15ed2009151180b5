"""`ortho invert`: the E-step for one image."""
