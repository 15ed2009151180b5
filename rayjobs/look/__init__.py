"""`ortho look`: inspect a pair set before training on it."""
