"""kvbench: one real compressed KV cache inside Hugging Face decoders; memory, speed and accuracy measured from it.

The names below load their modules on first use, so that ``import kvbench`` and ``kvbench --help`` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvbench.api import compress, run
    from kvbench.cache.compiled import compiled_decode
    from kvbench.compressors.cache_file import load_cache, save_cache
    from kvbench.errors import KvbenchError
    from kvbench.models.loading import load

__all__ = ["KvbenchError", "compiled_decode", "compress", "load", "load_cache", "run", "save_cache"]

_PLACES = {
    "KvbenchError": "kvbench.errors",
    "compiled_decode": "kvbench.cache.compiled",
    "compress": "kvbench.api",
    "load": "kvbench.models.loading",
    "load_cache": "kvbench.compressors.cache_file",
    "run": "kvbench.api",
    "save_cache": "kvbench.compressors.cache_file",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'kvbench' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
