"""Noise maps: base noise by seed, rotations of its patches, the statistics of what comes out."""
