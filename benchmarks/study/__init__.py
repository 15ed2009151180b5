"""The study behind `docs/results/matching.md`: its data sets, arms, judges and tables.

`benchmarks.matched_vs_direct` and `benchmarks.ablations` run it; everything that trains, assigns or judges is a job of `rayjobs`.
"""
