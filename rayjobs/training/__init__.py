"""What `ortho train` and `ortho train-gan` share: the loop on each Ray Train worker, how workers start, files, trackers."""
