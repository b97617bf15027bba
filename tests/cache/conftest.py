"""Fixtures of the cache tests."""

from fp64 import fp64, one_thread

__all__ = ["fp64", "one_thread"]
