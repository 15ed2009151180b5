"""Code that all verbs share: options, paths, plans, Ray sessions, the console."""
