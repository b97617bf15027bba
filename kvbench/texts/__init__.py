"""Texts: what exists (registry), which documents calibrate and which evaluate (splits), token windows of them."""

from __future__ import annotations

import os

# The allocator that Arrow takes else reserves a gigabyte when datasets is imported, which --memory-limit counts.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
