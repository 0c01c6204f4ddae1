"""Measurements: each prints the table that the documentation shows. Both sides run in one process."""
