"""What the E-step leaves: part files of assignments, and what is read from them."""
