"""`ortho train-gan`: a small one-step generator of labelled images."""
