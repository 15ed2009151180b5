"""What a pair set looks like, from a sample of its rows: without a model, and without torch."""
