"""Small one-step generators, fitted to labelled images."""
