"""Records of older schemas, carried forward one version at a time.

When ``SCHEMA`` grows from n to n + 1, add a step under n here and a file written by n to the tests' fixtures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvbench.errors import KvbenchError
from kvbench.runs.records import SCHEMA, checksum

Fields = dict[str, Any]

STEPS: dict[int, Callable[[Fields], Fields]] = {}
"""Version n to the function that turns a record's fields of version n into those of n + 1."""


def migrate(fields: Fields) -> Fields:
    """A record's plain JSON fields in the current schema, the id as it was, with a checksum that fits again.

    Raises ValueError where there is no usable version, KvbenchError where a newer kvbench wrote the record.
    """
    version = fields.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"schema_version is {version!r}")
    if version > SCHEMA:
        raise KvbenchError(f"a record has schema {version}, this kvbench reads up to {SCHEMA}; upgrade kvbench")
    if version == SCHEMA:
        return fields
    for step in range(version, SCHEMA):
        fields = STEPS[step](fields) | {"schema_version": step + 1}
    return fields | {"checksum": checksum(fields)}
