"""`ortho download`: models of the catalogue."""
