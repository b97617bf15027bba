"""The names of the dtypes that models run in: read without torch."""

from __future__ import annotations

from kvbench.errors import KvbenchError

_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


def dtype_name(name: str) -> str:
    """The name that torch has for the dtype that is called ``name``.

    Raises:
        KvbenchError: not a dtype that models run in.
    """
    full = _SHORT.get(name, name)
    if full not in _SHORT.values():
        raise KvbenchError(
            f"unknown dtype {name!r}; known: float32, bfloat16, float16, float64 (fp32, bf16, fp16, fp64)"
        )
    return full
