"""One byte string for one content: the JSON that trial ids and checksums are taken of.

Keys are sorted and nothing is indented, so two writers of the same content agree. NaN and the infinities are not
JSON numbers; they travel as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which the models read back.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel


def content(model: BaseModel) -> dict[str, Any]:
    """The model as plain JSON values, non-finite floats as strings."""
    return json.loads(model.model_dump_json())


def canonical_json(value: Any) -> str:
    """Sorted, compact JSON of plain values. Raises ValueError for a bare NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of plain values, 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()
