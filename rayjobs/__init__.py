"""The jobs: everything that runs on Ray, and the command `ortho` that starts them.

One module per verb, each with a configuration (a pydantic model that is also its command line), `plan` (what a dry run
prints) and `run` (the job, returning the exit code). The numerics are in `ortho_core`.
"""
