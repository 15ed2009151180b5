"""How rows are kept in files and folders: one module per format, with what several of them share."""
