"""`ortho sweep`: many EM runs with different settings, on Ray Tune."""
