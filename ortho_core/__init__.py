"""The method: latent-matched fine-tuning of one-step image generators, in PyTorch alone.

Noise assignment (E-step), the fine-tuning loss (M-step), pair sets, assignment records, diagnostics and the report. Nothing
here imports ray, reads the command line or prints; `rayjobs` runs it at scale.
"""

__version__ = "0.1.0"
