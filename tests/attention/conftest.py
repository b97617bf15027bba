"""Fixtures of the attention tests."""

from fp64 import fp64, one_thread

__all__ = ["fp64", "one_thread"]
