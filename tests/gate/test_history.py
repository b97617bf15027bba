"""Times over weeks: quiet on noise, and changes are dated."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from whole_record import PROVENANCE

from kvbench.cli import main as cli
from kvbench.gate.history import Point, Series, changes, series_of
from kvbench.runs.records import Record
from kvbench.runs.store import RunStore

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def series(seed: int, steps: dict[int, float], count: int = 30, noise: float = 0.01) -> Series:
    """``count`` nights with 1 % of noise; from each night of ``steps`` on, times are multiplied."""
    random = np.random.default_rng(seed)
    times = np.exp(random.normal(0, noise, count))
    for night, factor in steps.items():
        times[night:] *= factor
    return Series("k", "m", tuple(Point(FIRST + timedelta(n), f"c{n}", time) for n, time in enumerate(times)))


def test_noise_is_no_change():
    moved = [change for seed in range(100) for change in changes(series(seed, {})) if abs(change.factor - 1) > 0.05]
    assert moved == []


def test_one_slow_night_is_no_change():
    quiet = series(1, {})
    slow = list(quiet.points)
    slow[12] = Point(slow[12].measured, "c12", slow[12].time * 1.5)
    assert all(abs(change.factor - 1) < 0.05 for change in changes(Series("k", "m", tuple(slow))))


@pytest.mark.parametrize("factor", [1.1, 1.5, 0.8])
def test_a_new_level_is_dated(factor):
    hits = [changes(series(seed, {17: factor})) for seed in range(20)]
    big = [[change for change in each if abs(change.factor - 1) > 0.05] for each in hits]
    assert all(len(each) == 1 for each in big)
    assert all(each[0].factor == pytest.approx(factor, rel=0.03) for each in big)
    assert sum(each[0].commit == "c17" for each in big) >= 18


def test_two_changes_are_two():
    found = changes(series(3, {10: 1.2, 20: 0.85}))
    assert [change.commit for change in found if abs(change.factor - 1) > 0.05] == ["c10", "c20"]


def test_few_points_say_nothing():
    assert changes(series(0, {3: 2.0}, count=7)) == []


def night(record, folder, number, speedup, **trial):
    made = record("int:bits=4", trial=trial or None)
    speed = made.speed.model_copy(update={"ratio_to_hf": speedup})
    origin = PROVENANCE.model_copy(update={"started": FIRST + timedelta(number), "git_sha": f"{number:02x}" * 20})
    store = RunStore(folder / f"{number:02}")
    store.plan([made.trial], "s")
    store.append(Record.of(made.trial, "ok", origin, memory=made.memory, quality=made.quality, speed=speed))
    return store.records()[0]


def test_benchmarks_and_machines_are_kept_apart(record, tmp_path):
    records = [night(record, tmp_path / "a", 1, 2.0), night(record, tmp_path / "b", 2, 2.0, seed=1)]
    slow = records[0].provenance.model_copy(update={"cpu": "another"})
    parts = {"memory": records[0].memory, "quality": records[0].quality, "speed": records[0].speed}
    records.append(Record.of(records[0].trial, "ok", slow, **parts))
    assert [len(each.points) for each in series_of(records)] == [1, 1, 1]


def test_the_command_says_since_when(record, tmp_path, capsys):
    for number in range(12):
        night(record, tmp_path / "runs", number, 2.0 if number < 8 else 1.6)
    folders = sorted((tmp_path / "runs").iterdir())

    def call(*folders, code):
        with pytest.raises(SystemExit) as ended:
            cli.main(["history", *map(str, folders)])
        assert ended.value.code == code
        return capsys.readouterr()

    told = call(*folders, code=1)
    assert (
        "+25.0% since 0808080808 (2026-01-09)" in told.out and "slower now: random:llama | int:bits=4 | w" in told.err
    )
    assert "nothing is slower now" in call(*folders[:8], code=0).err
    assert "the most are 3" in call(*folders[:3], code=3).err
    (row,) = json.loads(call(*folders, "--json", code=1).out)
    assert row["points"] == 12 and row["changes"][0]["factor"] == pytest.approx(1.25)
