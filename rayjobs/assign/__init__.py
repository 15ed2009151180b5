"""`ortho assign`, `export` and `import`: the E-step over a pair set."""
