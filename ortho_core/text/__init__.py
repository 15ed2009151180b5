"""Text from outside: parsed within limits, and made fit to be shown and kept."""
