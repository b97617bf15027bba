"""Records of older schemas: carried forward one version at a time, or refused by name.

When ``SCHEMA`` grows from n to n + 1, add n to ``STEPS`` and a file written by n to the tests' fixtures if every number
of n still means the same; else add it to ``REFUSED`` with what changed its meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvbench.errors import KvbenchError
from kvbench.runs.records import checksum
from kvbench.runs.trials import SCHEMA

Fields = dict[str, Any]

REFUSED: dict[int, str] = {1: "peaks, TPOT, intervals and text splits meant something else then"}
"""Versions that are not carried forward, and why their numbers may not stand beside newer ones."""

STEPS: dict[int, Callable[[Fields], Fields]] = {}
"""Version n to the function that turns a record's fields of version n into those of n + 1."""


def migrate(fields: Fields) -> Fields:
    """A record's plain JSON fields in the current schema, the id as it was, with a checksum that fits again.

    Raises ValueError where there is no usable version, KvbenchError where :func:`check_schema` does.
    """
    version = fields.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"schema_version is {version!r}")
    if version == SCHEMA:
        return fields
    check_schema(version, "a record")
    for step in range(version, SCHEMA):
        fields = STEPS[step](fields) | {"schema_version": step + 1}
    return fields | {"checksum": checksum(fields)}


def check_schema(version: int, what: str) -> None:
    """Raise KvbenchError if this kvbench cannot read ``what`` of that version: refused, or written by a newer one."""
    if version > SCHEMA:
        raise KvbenchError(f"{what} has schema {version}, this kvbench reads up to {SCHEMA}; upgrade kvbench")
    if version in REFUSED:
        raise KvbenchError(
            f"{what} has schema {version}, this kvbench reads none before {max(REFUSED) + 1} "
            f"({REFUSED[version]}); measure it anew into a new folder"
        )
