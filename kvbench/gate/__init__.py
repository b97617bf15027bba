"""Verdicts on two sets of results, a committed baseline, and the exit code that a build sees."""
