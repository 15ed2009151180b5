"""Programs that measure: each prints ratios against a baseline that it runs itself, on the same machine in the same run."""
