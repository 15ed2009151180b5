"""The output of the E-step: part files of assignments, their plans and their readers."""
