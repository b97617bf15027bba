"""Records as lines: writing one, and reading many without trusting the disk.

A line is canonical JSON, and its checksum is of the same line without it. So a line is verified by hashing its bytes
with the checksum cut out, and not by parsing and serializing it again: ten thousand records load in half a second.
"""

from __future__ import annotations

import gc
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic_core import from_json

from kvbench.errors import KvbenchError, UndecidedError
from kvbench.runs.migrations import migrate
from kvbench.runs.records import Record

RECORDS = "records.jsonl"
_CHECKSUM = re.compile(rb'(?<=[{,])"checksum":"([0-9a-f]{64})",')
"""Quotation marks within texts are escaped, so a text cannot look like it."""


@dataclass(frozen=True)
class Lines:
    """What a records file holds: the records in file order, and the bytes of a last line that never got finished."""

    records: list[Record]
    torn: bytes


def encode_line(record: Record) -> bytes:
    """The record's line, with its newline."""
    return record.to_json().encode() + b"\n"


def decode_line(line: bytes) -> Record:
    """The record of a line. Raises ValueError if it is not whole, KvbenchError if its schema is not read."""
    stated = _CHECKSUM.search(line)
    if not stated:
        raise ValueError("it is no record")
    if hashlib.sha256(line[: stated.start()] + line[stated.end() :]).hexdigest() != stated[1].decode():
        raise ValueError("its checksum does not match its content")
    return Record.model_validate(migrate(from_json(line)))


def decode_lines(data: bytes, name: str) -> Lines:
    """All records of a file's content; only a last line without newline may be torn.

    Raises KvbenchError naming the line where any other one is corrupt.
    """
    *lines, tail = data.split(b"\n")
    with _collector_paused():
        records = [_decode_numbered(line, number, name) for number, line in enumerate(lines, start=1)]
    if not tail:
        return Lines(records, torn=b"")
    try:
        return Lines([*records, decode_line(tail)], torn=b"")
    except ValueError:
        return Lines(records, torn=tail)


def _decode_numbered(line: bytes, number: int, name: str) -> Record:
    try:
        return decode_line(line)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise KvbenchError(
            f"{name}, line {number} is corrupt ({reason}); restore the file from a copy, "
            "or delete that line to measure its trial again"
        ) from error
    except KvbenchError as error:
        raise KvbenchError(f"{name}, line {number}: {error}") from error


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Nothing in a record is cyclic; letting the collector look for cycles makes ten thousand records 4x slower."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def latest(records: list[Record]) -> list[Record]:
    """One record per id: the last one wins and takes the first one's place."""
    return list({record.id: record for record in records}.values())


def of_newest_code(records: list[Record]) -> list[Record]:
    """One record per trial whatever the code: of one that was measured anew the last one counts, as in a manifest."""
    often = {key for key, count in Counter(record.trial.key for record in records).items() if count > 1}
    return list(
        {
            record.trial.without_code().id if record.trial.key in often else record.id: record for record in records
        }.values()
    )


def read_records(path: Path | str) -> list[Record]:
    """The latest record of every trial in a run folder or a ``.jsonl`` file, whatever code and packages ran it.

    Raises UndecidedError if there is no such file or a line other than a torn last one is corrupt.
    """
    file = Path(path)
    file = file / RECORDS if file.is_dir() else file
    try:
        return of_newest_code(latest(decode_lines(file.read_bytes(), str(file)).records))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UndecidedError(f"no records at {file} ({reason}); `kvbench run --out FOLDER` makes some") from error
    except KvbenchError as error:
        raise UndecidedError(str(error)) from error
