"""Trials, their records and the folder that keeps them; suites that name many trials at once."""
