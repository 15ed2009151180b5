"""`ortho verify-noise`: the Gaussian statistics of rotated noise."""
