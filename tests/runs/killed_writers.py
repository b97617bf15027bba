"""Writers of run folders that are killed at random: a program of its own, small enough that a fork takes no time.

    python killed_writers.py RECORD FOLDER KILLS

Each writer goes on in the folder that the one before it left, ten of them in a folder, and says which records the store
has reported as written before SIGKILL ends it, in an append of one or of several records or between two. What it has
said must be there afterwards, and whatever is there must be whole.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kvbench.runs.jsonl import RECORDS, decode_lines, read_records
from kvbench.runs.records import Record
from kvbench.runs.store import RunStore

WRITERS, EACH, MOST = 10, 60, 12
"""Writers in a folder, records that each may write, and the most that it appends at once: enough for several pages of
a file, between which a write can be cut."""
MOST_REPORTS, LONGEST_WAIT = 6, 0.004
"""A writer is killed after fewer appends than that, and at most so many seconds later: in the next one or between two,
on an idle machine as on a busy one."""


def main() -> None:
    """Kill, look, go on; one line of what was done."""
    (record,) = read_records(sys.argv[1])
    folder, kills, drawn = Path(sys.argv[2]), int(sys.argv[3]), random.Random(0)
    records = [_numbered(record, number) for number in range(WRITERS * EACH)]
    written = torn = 0
    for kill in range(kills):
        first = kill % WRITERS * EACH
        run = folder / str(kill // WRITERS)
        reported = _killed(run, records[first : first + EACH], drawn)
        there = _there(run)
        assert {each.id for each in records[first : first + reported]} <= there.keys(), "a reported record is lost"
        written, torn = written + reported, torn + RunStore(run).torn
    assert "torch" not in sys.modules, "the store is no longer a small program"
    print(f"{kills} killed, {written} records reported, {torn} bytes torn")


def _numbered(record: Record, number: int) -> Record:
    trial = record.trial.model_copy(update={"seed": number})
    parts = {name: getattr(record, name) for name in record.trial.workload.parts}
    return Record.of(trial, "ok", record.provenance, **parts)


def _killed(run: Path, records: Sequence[Record], drawn: random.Random) -> int:
    """How many of ``records`` a writer had reported when it was killed."""
    reading, writing = os.pipe()
    seed, appends, wait = drawn.random(), drawn.randrange(MOST_REPORTS), drawn.uniform(0, LONGEST_WAIT)
    child = os.fork()
    if child == 0:
        try:
            _write(run, records, random.Random(seed), writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as reports:
        reported = b"".join(reports.read(1) for _ in range(appends))
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "a writer ended by itself"
        return sum(reported + reports.read())


def _write(run: Path, records: Sequence[Record], drawn: random.Random, reports: int) -> None:
    store = RunStore(run)
    store.plan([records[0].trial], "killed")
    waiting = iter(records)
    while some := list(itertools.islice(waiting, drawn.choice((1, 1, 2, MOST)))):
        if len(some) == 1:
            store.append(some[0])
        else:
            store.append_all(some)
        os.write(reports, bytes([len(some)]))
    time.sleep(60)


def _there(run: Path) -> dict[str, Record]:
    """Every whole record of the folder. Raises KvbenchError where one is corrupt."""
    if not (run / RECORDS).exists():
        return {}
    RunStore(run).status()  # reads the manifest, which is old or new and never in between
    return {record.id: record for record in decode_lines((run / RECORDS).read_bytes(), str(run)).records}


if __name__ == "__main__":
    main()
