"""Pair sets: where (prompt, image) rows come from, one module per format, and what makes a row usable.

`pair_set.PairSet` opens any of them; `rows.PairFields` says which fields hold what.
"""
