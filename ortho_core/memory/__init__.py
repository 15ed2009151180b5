"""The GPU memory that a model needs, counted without a GPU, and the plans that are made from it."""
