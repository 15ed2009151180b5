"""Evaluation of models on held-out rows.

`rows` computes the record of each row in a worker. `judge` and `features` have the models that score images. `statistics` turns
the figures and features of many rows into numbers with intervals. `metrics` has the names of these numbers.
"""
