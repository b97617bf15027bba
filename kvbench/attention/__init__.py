"""Attention over parts of a context, and how the parts merge."""
