"""Noise maps: base noise by seed, rotations of its patches, and their statistics."""
