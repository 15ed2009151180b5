"""`ortho reward`: raise rewards at test time."""
