"""Describe a pair set from a sample of its rows, without a model and without torch."""
