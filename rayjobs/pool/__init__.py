"""The worker pool: what assign, reward and evaluate share."""
