"""The M-step: an update at matched noise, its loss, its data and the order of the rows."""
