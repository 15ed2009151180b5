"""`ortho download`: download models of the catalogue."""
