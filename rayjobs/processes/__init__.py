"""Processes that begin without importing and end without taking apart what is imported."""
