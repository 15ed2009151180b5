"""Processes that start without imports (forks of a server) and end without freeing their modules one by one."""
