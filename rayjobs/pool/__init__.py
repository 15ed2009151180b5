"""The worker pool that `assign`, `reward` and `evaluate` share."""
