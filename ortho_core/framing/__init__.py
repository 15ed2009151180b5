"""Which part of a picture a model sees, and at which size: one size, or several of about one area (buckets)."""
