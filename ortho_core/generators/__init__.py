"""One-step generators: the protocol every job works with, and the loader that finds the right implementation."""
