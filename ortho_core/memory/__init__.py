"""What a model needs of a GPU's memory, counted without one, and what is planned with it."""
