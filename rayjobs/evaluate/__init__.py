"""`ortho evaluate`: held-out metrics of one or more models."""
