"""Formats: how rows are stored in files and folders. One module per format, and modules that several formats share."""
