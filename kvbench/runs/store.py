"""The folder of one suite's run: what is expected, what has been measured, what is still to do.

    manifest.json    the suite's expected trials, written before the first of them starts
    records.jsonl    one checksummed line per trial that ended, only ever appended to
    records.torn     unfinished last lines that a crash left, kept for inspection
    .lock            held by the one process that writes

A run that is killed at any moment loses at most the trial it was measuring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import AwareDatetime, ValidationError

from kvbench.errors import KvbenchError
from kvbench.runs.canonical import canonical_json, content
from kvbench.runs.jsonl import RECORDS, Lines, decode_lines, encode_line, latest, read_records
from kvbench.runs.records import Frozen, Record
from kvbench.runs.trials import SCHEMA, Trial
from kvbench.storage.files import append_bytes, replace_file, truncate_file

__all__ = ["Manifest", "RunStore", "StoreStatus", "read_records"]

LOCK_SECONDS = 5


class Manifest(Frozen):
    """The trials a suite expects, by id."""

    schema_version: int
    suite: str
    created: AwareDatetime
    trials: dict[str, Trial]


@dataclass(frozen=True)
class StoreStatus:
    """How far a run is: expected = done + failed + missing trials, and the bytes of a torn last line."""

    expected: int
    done: int
    failed: int
    missing: int
    torn: int


class RunStore:
    """Reads and extends a run folder; only one process at a time may write to it.

    Raises KvbenchError for a folder of another schema version or with a damaged manifest.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = self._read_manifest()
        self._lock = FileLock(self.folder / ".lock", thread_local=False)

    def plan(self, trials: Iterable[Trial], suite: str) -> None:
        """Add the trials to the manifest, on disk before this returns.

        An expected trial that differs from a new one only in the code that runs it gives way to it: that code is
        gone. Raises KvbenchError if the folder cannot be made or holds another suite, or if another process writes.
        """
        new = {trial.id: trial for trial in trials}
        self._make_folder()
        with self.writing():
            self.manifest = self._read_manifest()
            if self.manifest and self.manifest.suite != suite:
                raise KvbenchError(
                    f"{self.folder} holds suite {self.manifest.suite!r}, not {suite!r}; choose another folder"
                )
            replaced = {trial.without_code().id for trial in new.values()}
            old = self.manifest.trials if self.manifest else {}
            kept = {id: trial for id, trial in old.items() if id in new or trial.without_code().id not in replaced}
            created = self.manifest.created if self.manifest else datetime.now(UTC)
            self.manifest = Manifest(schema_version=SCHEMA, suite=suite, created=created, trials=kept | new)
            replace_file(self._manifest_path, canonical_json(content(self.manifest)).encode() + b"\n")

    def append(self, record: Record) -> None:
        """Add one terminal record, on disk before this returns. Raises KvbenchError if another process is writing."""
        self.append_all([record])

    def append_all(self, records: Iterable[Record]) -> None:
        """Add records, all on disk before this returns; of a crash in between the first ones are left, each whole.

        Raises:
            KvbenchError: another process is writing.
        """
        with self.writing():
            self._settle_tail()
            append_bytes(self._records_path, b"".join(map(encode_line, records)))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers out, for one append or for a whole run. Raises KvbenchError if one is in."""
        try:
            with self._lock.acquire(timeout=LOCK_SECONDS):
                yield
        except Timeout as error:
            raise KvbenchError(
                f"another run is writing to {self.folder}; wait for it or choose another folder"
            ) from error

    def records(self) -> list[Record]:
        """The latest record of every trial. Raises KvbenchError where a line other than a torn last one is corrupt."""
        return latest(self._lines().records)

    def finished_ids(self) -> set[str]:
        """Ids of the trials that need not run again: those whose latest record is ok."""
        return {record.id for record in self.records() if record.status == "ok"}

    def missing(self) -> list[Trial]:
        """The expected trials that have no record at all, in the manifest's order; failed ones have one."""
        recorded = {record.id for record in self.records()}
        return [trial for id, trial in self._expected().items() if id not in recorded]

    @property
    def torn(self) -> int:
        """Bytes of a last line that a crash cut off; 0 for none. The next append moves them to ``records.torn``."""
        return len(self._lines().torn)

    def status(self) -> StoreStatus:
        """Counts over the expected trials."""
        lines = self._lines()
        states = {record.id: record.status for record in lines.records}
        ended = [states[id] for id in self._expected() if id in states]
        done = ended.count("ok")
        expected = len(self._expected())
        return StoreStatus(expected, done, len(ended) - done, expected - len(ended), len(lines.torn))

    @property
    def _manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def _records_path(self) -> Path:
        return self.folder / RECORDS

    def _expected(self) -> dict[str, Trial]:
        return self.manifest.trials if self.manifest else {}

    def _lines(self) -> Lines:
        if not self._records_path.exists():
            return Lines([], b"")
        return decode_lines(self._records_path.read_bytes(), str(self._records_path))

    def _read_manifest(self) -> Manifest | None:
        path = self._manifest_path
        if not path.exists():
            return None
        text = path.read_text("utf-8", errors="replace")
        try:
            version = _SchemaOnly.model_validate_json(text).schema_version
            if version != SCHEMA:
                raise KvbenchError(
                    f"{self.folder} was written with schema {version}, this kvbench writes {SCHEMA}; "
                    "give the run a new folder"
                )
            return Manifest.model_validate_json(text)
        except ValidationError as error:
            raise KvbenchError(
                f"{path} is damaged; delete it and start the run again: {RECORDS} beside it keeps what was measured"
            ) from error

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KvbenchError(f"cannot make folder {self.folder} ({error.strerror}); choose another") from error

    def _settle_tail(self) -> None:
        """End the file with a complete line again, so that the next one starts on a new line."""
        if not self._records_path.exists() or _ends_with_newline(self._records_path):
            return
        torn = self._lines().torn
        if not torn:  # the record is whole, only its newline is missing
            append_bytes(self._records_path, b"\n")
            return
        append_bytes(self.folder / "records.torn", torn + b"\n")
        truncate_file(self._records_path, self._records_path.stat().st_size - len(torn))


class _SchemaOnly(Frozen, extra="ignore"):
    schema_version: int


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size == 0:
            return True
        file.seek(size - 1)
        return file.read(1) == b"\n"
