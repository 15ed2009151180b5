"""How models are judged on held-out rows: what is computed for each row, the models that look at images, the statistics.

`rows` is what a worker does, `judge` and `features` hold what looks at images, `statistics` turns figures and features of
many rows into numbers with intervals, `metrics` has their names.
"""
