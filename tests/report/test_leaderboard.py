"""The leaderboard: a function of records alone, which does not mix revisions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from whole_record import MEMORY, PROVENANCE, QUALITY, SPEED, TRIAL

from kvbench.cli import main as cli
from kvbench.errors import KvbenchError, UndecidedError
from kvbench.report.leaderboard import write_leaderboard
from kvbench.runs.records import Record
from kvbench.runs.store import RunStore

CLEAN = {"git_sha": "a" * 40, "git_dirty": False}


def put(folder: Path, *compressors: str, missing: int = 0, **provenance: object) -> None:
    """A results folder with a record of each compressor."""
    trials = [TRIAL.model_copy(update={"compressor": each}) for each in compressors]
    store = RunStore(folder)
    store.plan([*trials, *(TRIAL.model_copy(update={"seed": 1 + n}) for n in range(missing))], "s")
    for trial in trials:
        origin = PROVENANCE.model_copy(update=CLEAN | provenance)
        store.append(Record.of(trial, "ok", origin, memory=MEMORY, speed=SPEED, quality=QUALITY))


def test_one_page_of_all_folders_and_a_report_for_each(tmp_path):
    put(tmp_path / "results" / "one", "none", "int:bits=4")
    put(tmp_path / "results" / "two", "ftc:bits=3", git_sha="b" * 40)
    (index, *reports) = write_leaderboard(tmp_path / "results", tmp_path / "site")
    page = index.read_text()
    assert all(name in page for name in ("int:bits=4", "ftc:bits=3", "a" * 10, "b" * 10, 'href="one/report.html"'))
    assert {path.parent.name for path in reports} == {"one", "two"} and all(path.exists() for path in reports)
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    write_leaderboard(tmp_path / "results", tmp_path / "again")
    for path in (index, *reports):
        again = tmp_path / "again" / path.relative_to(tmp_path / "site")
        assert path.suffix != ".html" or again.read_bytes() == path.read_bytes()


def test_many_trials_come_first_and_columns_are_explained(tmp_path):
    put(tmp_path / "results" / "a", "none")
    put(tmp_path / "results" / "b", "none", "int:bits=4,recent=0")
    page = write_leaderboard(tmp_path / "results", tmp_path / "site")[0].read_text()
    assert page.index('id="b"') < page.index('id="a"')
    assert "int:bits=4,<wbr>recent=0" in page
    assert "What the numbers mean" in page and "Decoding speed-up over none" in page and "TPOT p99 ms" not in page


def test_mixed_and_uncommitted_revisions_are_refused(tmp_path):
    put(tmp_path / "mixed" / "one", "none")
    put(tmp_path / "mixed" / "one", "int:bits=4", git_sha="b" * 40)
    with pytest.raises(UndecidedError, match="one mixes revisions \\(aaaaaaaaaa, bbbbbbbbbb\\); measure it anew"):
        write_leaderboard(tmp_path / "mixed", tmp_path / "site")
    put(tmp_path / "dirty" / "one", "none", git_dirty=True)
    with pytest.raises(UndecidedError, match="changes that are not committed"):
        write_leaderboard(tmp_path / "dirty", tmp_path / "site")


def test_a_folder_measured_anew_is_of_the_newer_revision(tmp_path):
    put(tmp_path / "results" / "one", "none")
    newer = TRIAL.model_copy(update={"compressor": "none", "code": "0" * 64})
    store = RunStore(tmp_path / "results" / "one")
    store.plan([newer], "s")
    origin = PROVENANCE.model_copy(update=CLEAN | {"git_sha": "b" * 40})
    store.append(Record.of(newer, "ok", origin, memory=MEMORY, speed=SPEED, quality=QUALITY))
    (index, *_) = write_leaderboard(tmp_path / "results", tmp_path / "site")
    assert "b" * 10 in index.read_text() and "a" * 10 not in index.read_text()


def test_unfinished_runs_and_empty_folders_are_refused(tmp_path):
    put(tmp_path / "half" / "one", "none", missing=2)
    with pytest.raises(KvbenchError, match="one is unfinished: 2 trials have no record"):
        write_leaderboard(tmp_path / "half", tmp_path / "site")
    with pytest.raises(KvbenchError, match="has no results folders"):
        write_leaderboard(tmp_path, tmp_path / "site")


def test_runs_are_listed(tmp_path, capsys):
    put(tmp_path / "runs" / "one", "none", "int:bits=4", missing=1)
    with pytest.raises(SystemExit):
        cli.main(["ls", "runs", str(tmp_path / "runs"), "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["suite"], row["done"], row["commit"]) == ("one", "s", "2 of 3", "a" * 10)
    with pytest.raises(SystemExit) as ended:
        cli.main(["ls", "runs", str(tmp_path)])
    assert ended.value.code == 2 and "has no results folders" in capsys.readouterr().err
