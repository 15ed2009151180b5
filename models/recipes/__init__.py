"""The programs that made the small models and example pairs of this repository.

Each module is a program (`python -m models.recipes.NAME`) that reads the original MNIST files and writes one of the folders in
the repository: `vae` and `turbo` make `models/tiny-turbo`, `pairs` makes `examples/digits`, `excerpt` makes
`examples/mnist`, and from that `leaning` makes `examples/leaning`; `score` measures a generator with an independent digit
classifier.
"""
