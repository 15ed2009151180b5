"""The M-step: one update at matched noise, its loss, its data and the order of its rows."""
