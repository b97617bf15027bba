"""Run folders put together: the same suite, measured in parts on several machines or at several times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvbench.errors import KvbenchError
from kvbench.runs.records import Record
from kvbench.runs.store import RunStore


@dataclass(frozen=True)
class Merged:
    """How many records were added to the folder, and the ids of trials that several folders have measured."""

    added: int
    conflicts: tuple[str, ...]


def merge(sources: Sequence[Path], target: Path) -> Merged:
    """Add all trials and records of ``sources`` to the run folder ``target``, which may be new.

    Of several records of one trial the first that is ok stays, the one in ``target`` before all others; those that were
    measured twice are reported.

    Raises:
        KvbenchError: a source is no run folder, or of another suite.
    """
    stores = [RunStore(source) for source in sources]
    for store in stores:
        if store.manifest is None:
            raise KvbenchError(f"{store.folder} is no run folder: it has no manifest.json")
        if target.resolve() == store.folder.resolve():
            raise KvbenchError(f"{store.folder} cannot be merged into itself")
    into = RunStore(target)
    for store in stores:
        assert store.manifest is not None
        into.plan(store.manifest.trials.values(), store.manifest.suite)
    with into.writing():
        chosen = {record.id: record for record in into.records()}
        conflicts, new = dict[str, None](), dict[str, Record]()
        for record in (record for store in stores for record in store.records()):
            before = chosen.get(record.id)
            if before is not None and before.checksum != record.checksum and before.status == record.status == "ok":
                conflicts[record.id] = None
            if before is None or (record.status == "ok" and before.status != "ok"):
                chosen[record.id] = new[record.id] = record
        if new:
            into.append_all(new.values())
    return Merged(len(new), tuple(conflicts))
