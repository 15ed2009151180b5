"""The jobs: everything that runs on Ray, and the command `ortho` that starts them.

Each verb has one package or module with its configuration (a pydantic model that is also its command line), `describe` (what
a dry run prints) and `run` (the job; returns the exit code). The numerics are in `ortho_core`.
"""
