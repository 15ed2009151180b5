"""`ortho look`: a pair set before anything is trained on it."""
