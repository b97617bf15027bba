"""Reading results that a verb shows: there must be some."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvbench.errors import UndecidedError

if TYPE_CHECKING:
    from kvbench.runs.records import Record


def some_records(results: Path) -> list[Record]:
    """The records of a results folder or a .jsonl file.

    Raises:
        UndecidedError: there are none, or they cannot be read.
    """
    from kvbench.runs.store import read_records

    records = read_records(results)
    if not records:
        raise UndecidedError(f"{results} holds no records; `kvbench run --out {results}` measures some")
    return records
