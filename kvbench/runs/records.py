"""What came out: a trial's record with the result of every part, where it ran, or why it failed.

Sizes are bytes, times seconds, intervals 95 %. Everything is immutable and validated; sequences are tuples.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BeforeValidator, model_validator

from kvbench.measure.parts import PartResults
from kvbench.runs.canonical import canonical_json, content, digest
from kvbench.runs.trials import SCHEMA, Trial
from kvbench.storage.frozen import Frozen

Status = Literal["ok", "failed", "oom", "timeout", "killed", "interrupted"]


class Provenance(Frozen):
    """Where, when and with what a trial ran. None means that it could not be found out."""

    kvbench: str
    python: str
    packages: dict[str, str]
    torch_build: str
    platform: str
    cpu: str
    cores: int
    threads: int
    memory_total: int
    load_average: tuple[float, float, float] | None = None
    git_sha: str | None = None
    git_dirty: bool | None = None
    device_name: str
    device_memory: int | None = None
    hostname_hash: str
    started: AwareDatetime
    finished: AwareDatetime


def _encodable(text: Any) -> Any:
    """Messages of the operating system may quote bytes that are no UTF-8; a failure must not fail to be recorded."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


Message = Annotated[str, BeforeValidator(_encodable)]


class Failure(Frozen):
    """Why a trial has no result."""

    type: str
    message: Message
    traceback: Message | None = None


class Record(PartResults):
    """A trial's terminal state, one line of ``records.jsonl``. Make one with :meth:`of`."""

    schema_version: int
    id: str
    trial: Trial
    status: Status
    failure: Failure | None = None
    solved_for: tuple[float, ...] = ()
    """Bits per element that the compressor was solved for; where it cannot take them, this is its nearest size."""
    provenance: Provenance
    checksum: str
    """sha256 of the canonical JSON of all other fields."""

    @model_validator(mode="after")
    def _is_complete(self) -> Record:
        missing = [part for part in self.trial.workload.parts if getattr(self, part) is None]
        if self.status == "ok" and (missing or self.failure):
            raise ValueError(f"an ok record needs no failure and all of its workload; missing: {missing}")
        if self.status != "ok" and self.failure is None:
            raise ValueError(f"a record with status {self.status!r} needs a failure that says why")
        return self

    @classmethod
    def of(
        cls,
        trial: Trial,
        status: Status,
        provenance: Provenance,
        *,
        failure: Failure | None = None,
        solved_for: tuple[float, ...] = (),
        **results: Frozen | None,
    ) -> Record:
        """The record of a trial that has ended, with its id and checksum; ``results`` by the names of their parts.

        Raises:
            ValueError: it is not whole.
        """
        draft = cls.model_validate(
            {
                "schema_version": SCHEMA,
                "id": trial.id,
                "trial": trial,
                "status": status,
                "failure": failure,
                "solved_for": solved_for,
                "provenance": provenance,
                "checksum": "",
                **results,
            }
        )
        return draft.model_copy(update={"checksum": checksum(content(draft))})

    def to_json(self) -> str:
        """One line of canonical JSON, without the newline, with the checksum of what stands in it.

        A record from a file that lacks newer optional fields is written with them.
        """
        fields = content(self)
        return canonical_json(fields | {"checksum": checksum(fields)})


def checksum(fields: dict[str, Any]) -> str:
    """The checksum that belongs to a record given as plain JSON values; a ``checksum`` among them is left out."""
    return digest({name: value for name, value in fields.items() if name != "checksum"})
