"""Pair sets: the sources of (prompt, image) rows, one module per format, and the checks that make a row usable.

`pair_set.PairSet` opens any pair set; `rows.PairFields` names the fields of its rows.
"""
