"""`ortho train`: the M-step on Ray Train."""
