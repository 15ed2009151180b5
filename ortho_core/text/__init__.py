"""Text from outside: parsed within limits, and made safe to show and to store."""
