"""`ortho em`: alternate E-step and M-step."""
