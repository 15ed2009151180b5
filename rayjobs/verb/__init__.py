"""What every verb stands on: options, paths, plans, sessions, the console."""
