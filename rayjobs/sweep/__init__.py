"""`ortho sweep`: trials of the whole method on Ray Tune."""
