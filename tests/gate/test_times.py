"""Times of two versions: quiet where nothing changed, and a slowdown is told when it comes back."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from kvbench.cli import main as cli
from kvbench.gate.interleaved import Version, rounds
from kvbench.gate.times import Round, TimeVerdict, confirmed, exit_code, explained, judge_times

KEY = "m | int:bits=4 | w"


def drifting(seed: int, slower: float = 0.0, count: int = 10) -> list[Round]:
    """Rounds of a benchmark that drifts by a third beside its control, with 1 % of noise in every time."""
    random = np.random.default_rng(seed)
    drift = 1 + 0.33 * np.sin(np.arange(count) / 3 + seed)
    noise = np.exp(random.normal(0, 0.01, (count, 4)))
    return [Round(drift[i] * a / b, drift[i] * (1 + slower) * c / d) for i, (a, b, c, d) in enumerate(noise)]


def test_a_version_against_itself_is_never_slower():
    verdicts = [judge_times(KEY, drifting(seed)).verdict for seed in range(200)]
    twice = [a is b is TimeVerdict.SLOWER for a, b in zip(verdicts[::2], verdicts[1::2], strict=True)]
    assert not any(twice) and verdicts.count(TimeVerdict.SLOWER) <= 2
    assert verdicts.count(TimeVerdict.SAME) > 100


def test_fifteen_percent_are_found():
    found = [judge_times(KEY, drifting(seed, slower=0.15)) for seed in range(100)]
    assert all(row.verdict is TimeVerdict.SLOWER for row in found)
    assert np.median([row.change for row in found]) == pytest.approx(0.15, abs=0.01)
    assert judge_times(KEY, drifting(1, slower=-0.15)).verdict is TimeVerdict.FASTER


def test_a_slowdown_must_come_back():
    slow, same = (judge_times(KEY, drifting(3, slower)) for slower in (0.2, 0.0))
    assert confirmed([slow], {KEY: slow}) == [slow]
    (row,) = confirmed([slow], {KEY: same})
    assert row.verdict is TimeVerdict.AMBIGUOUS and "slower once" in row.note
    assert confirmed([same], {KEY: slow}) == [same]
    few = judge_times(KEY, drifting(3, count=3))
    assert all(confirmed([slow], again)[0].verdict is TimeVerdict.NOT_MEASURED for again in ({}, {KEY: few}))


def test_verdicts_and_exit_codes():
    few = judge_times(KEY, drifting(0, count=5))
    wide = judge_times(KEY, [Round(1, 1 + 0.1 * (i % 2)) for i in range(8)])
    same, slower = judge_times(KEY, drifting(0)), judge_times(KEY, drifting(0, 0.3))
    assert (few.verdict, wide.verdict) == (TimeVerdict.NOT_MEASURED, TimeVerdict.AMBIGUOUS)
    assert [exit_code([row]) for row in (same, few, wide, slower)] == [0, 3, 0, 1]
    assert exit_code([wide], strict=True) == 3 and exit_code([]) == 3 and exit_code([few, slower]) == 1
    assert "within ±5%" in explained(same) and "above +5%" in explained(slower)
    assert "more rounds narrow it" in explained(wide) and "5 rounds of both; 6 are needed" in explained(few)


VERSION = """
import json, sys
factor = {factor}
arguments = sys.argv[1:]
assert arguments[0] == "run" and "--json" in arguments
for compressor in {compressors}:
    trial = {{"model": "m", "compressor": compressor, "workload": {{"name": "w"}}}}
    ratio = None if compressor == "hf" else 2 / factor
    print(json.dumps({{"trial": trial, "status": "ok", "speed": {{"ratio_to_hf": ratio}}}}))
"""


def version(folder: Path, factor: float, compressors=("hf", "int:bits=4")) -> Path:
    """A checkout whose package prints records in no time, ``factor`` times as slow."""
    (folder / "kvbench").mkdir(parents=True)
    (folder / "kvbench" / "__init__.py").touch()
    (folder / "kvbench" / "__main__.py").write_text(VERSION.format(factor=factor, compressors=compressors))
    return folder


def gate_times(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["gate-times", *map(str, arguments)])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_checkouts_are_run_in_turns_and_judged(tmp_path, capsys):
    base, slow = version(tmp_path / "base", 1.0), version(tmp_path / "slow", 1.15)
    code, printed, said = gate_times(capsys, "--base", base, "--head", slow, "--rounds", 6, "--json")
    (row,) = json.loads(printed)["rows"]
    assert code == 1 and (row["key"], row["verdict"]) == (KEY, "slower") and "slower once; measured again" in said
    assert row["change"] == pytest.approx(0.15)
    assert gate_times(capsys, "--base", base, "--head", base, "--rounds", 6)[0] == 0
    code, printed, _ = gate_times(capsys, "--base", slow, "--head", base, "--rounds", 6)
    assert code == 0 and printed.startswith(f"{KEY}: faster: -13.0%")


KEYS = [f"m | int:bits={bits} | w" for bits in (2, 3, 4, 8)]


def shared_machine(monkeypatch, seed: int, slower: float = 0.0) -> None:
    """Let versions be timed on a machine that others use: a process is 1.5 % off for its whole life, one in a hundred
    has a neighbour that takes 15 %, and all of them drift by 5 %. The version called head is ``slower``."""
    random, turn = np.random.default_rng(seed), count()

    def times(side: Version, suite: Path, threads: int) -> dict[str, float]:
        drift = 1 + 0.05 * np.sin(next(turn) / 5 + seed)
        neighbour = 1.15 if random.random() < 0.01 else 1.0
        process = drift * neighbour * np.exp(random.normal(0, 0.015))
        share = 1 + slower if side.place.name == "head" else 1.0
        return {key: share * process * np.exp(random.normal(0, 0.01)) for key in KEYS}

    monkeypatch.setattr(Version, "check", lambda side: None)
    monkeypatch.setattr(Version, "times", times)


def test_twenty_runs_of_one_version_against_itself_raise_no_alarm(monkeypatch, capsys):
    for seed in range(20):
        shared_machine(monkeypatch, seed)
        code, printed, _ = gate_times(capsys, "--base", "base", "--head", "head", "--json")
        assert code == 0 and {row["verdict"] for row in json.loads(printed)["rows"]} <= {"same", "ambiguous"}


def test_fifteen_percent_are_told_in_nearly_every_one_of_twenty_runs(monkeypatch, capsys):
    codes, told = [], 0
    for seed in range(20):
        shared_machine(monkeypatch, seed, slower=0.15)
        code, printed, _ = gate_times(capsys, "--base", "base", "--head", "head", "--json")
        told += [row["verdict"] for row in json.loads(printed)["rows"]].count("slower")
        codes.append(code)
    assert codes.count(1) >= 18 and told >= 0.9 * 20 * len(KEYS)


def test_what_one_side_does_not_measure_is_no_pass(tmp_path, capsys):
    base, head = version(tmp_path / "base", 1.0), version(tmp_path / "head", 1.0, ("hf",))
    code, printed, _ = gate_times(capsys, "--base", base, "--head", head, "--rounds", 6)
    assert code == 3 and "not measured" in printed
    assert gate_times(capsys, "--base", head, "--head", head, "--rounds", 6)[0] == 3


def test_what_is_no_version_is_refused(tmp_path, capsys):
    code, _, said = gate_times(capsys, "--base", tmp_path)
    assert code == 2 and "holds no package kvbench; name a checkout" in said
    broken = version(tmp_path / "broken", 1.0)
    (broken / "kvbench" / "__init__.py").write_text("import nothing_of_that_name")
    assert "No module named 'nothing_of_that_name'" in gate_times(capsys, "--base", broken)[2]
    assert "no speed part to time" in gate_times(capsys, "--base", broken, "--suite", "mla-conversion")[2]
    assert gate_times(capsys, "--base", broken, "--rounds", 5)[0] == 2


def test_both_sides_go_first(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(Version, "times", lambda side, *_: order.append(side.place.name) or {})
    rounds(Version(Path("base")), Version(Path("head")), tmp_path, 20, 1, lambda _: None)
    assert {*order[::2]} == {"base", "head"}
