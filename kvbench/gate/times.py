"""Times of two versions of the code, measured in turns: same, slower, faster, or not known.

In every round each side runs in a fresh process, where every decode step takes turns with a control that neither side's
code goes into: stock transformers' own cache and attention. A time is a share of the control's, which takes the drift
of the machine out, and is compared within its round. Two tight intervals are no proof: what makes one process slower
may stay for minutes. Therefore a slowdown counts when a second series of rounds finds it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from kvbench.errors import EXIT_OK, EXIT_REGRESSION, EXIT_UNDECIDED
from kvbench.measure.statistics import paired_ratio

MARGIN = 0.05
"""A share of the time that no one is told of."""

LEAST_ROUNDS = 6
"""Rounds below which a median has no 95 % interval."""


class TimeVerdict(StrEnum):
    """What became of a time, from harmless to grave."""

    SAME = "same"
    FASTER = "faster"
    AMBIGUOUS = "ambiguous"
    NOT_MEASURED = "not measured"
    SLOWER = "slower"


@dataclass(frozen=True)
class Round:
    """The time per token on either side, as a share of the control's in the same process and turns."""

    base: float
    head: float


@dataclass(frozen=True)
class TimeRow:
    """What is known of one benchmark. ``change`` is head's share of base's time above 1, with a 95 % interval."""

    key: str
    verdict: TimeVerdict
    change: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


def judge_times(key: str, rounds: Sequence[Round], margin: float = MARGIN) -> TimeRow:
    """The verdict on ``rounds``: *slower* or *faster* where the whole interval is beyond the margin, *same* where it is
    within it, *ambiguous* where it reaches across."""
    if len(rounds) < LEAST_ROUNDS:
        return TimeRow(key, TimeVerdict.NOT_MEASURED, note=f"{len(rounds)} rounds of both; {LEAST_ROUNDS} are needed")
    ratio = paired_ratio([each.head for each in rounds], [each.base for each in rounds])
    assert ratio.low is not None and ratio.high is not None
    return row_of(key, (ratio.ratio - 1, ratio.low - 1, ratio.high - 1), margin)


def row_of(key: str, change: tuple[float, float, float], margin: float) -> TimeRow:
    """The row of a change with its interval's low and high end."""
    _, low, high = change
    if low > margin:
        verdict = TimeVerdict.SLOWER
    elif high < -margin:
        verdict = TimeVerdict.FASTER
    else:
        verdict = TimeVerdict.SAME if -margin <= low and high <= margin else TimeVerdict.AMBIGUOUS
    return TimeRow(key, verdict, *change)


def confirmed(first: Iterable[TimeRow], second: Mapping[str, TimeRow]) -> list[TimeRow]:
    """``first`` after a second series: what is slower in one of two only is ambiguous, and what was not measured again
    is not measured."""
    return [_confirmed(row, second.get(row.key)) if row.verdict is TimeVerdict.SLOWER else row for row in first]


def _confirmed(slower: TimeRow, again: TimeRow | None) -> TimeRow:
    if again is None or again.change is None:
        return TimeRow(slower.key, TimeVerdict.NOT_MEASURED, note="slower once, and could not be measured again")
    if again.verdict is TimeVerdict.SLOWER:
        return slower
    note = f"slower once, {again.change:+.1%} when measured again"
    return replace(slower, verdict=TimeVerdict.AMBIGUOUS, note=note)


def exit_code(rows: Sequence[TimeRow], strict: bool = False) -> int:
    """1 for a slowdown, 3 where nothing or not everything was measured, or where ``strict`` forbids ambiguity."""
    verdicts = {row.verdict for row in rows}
    if TimeVerdict.SLOWER in verdicts:
        return EXIT_REGRESSION
    undecided = {TimeVerdict.NOT_MEASURED} | ({TimeVerdict.AMBIGUOUS} if strict else set())
    return EXIT_UNDECIDED if not rows or verdicts & undecided else EXIT_OK


def explained(row: TimeRow, margin: float = MARGIN) -> str:
    """The verdict in a sentence."""
    if row.change is None:
        return f"{row.key}: {row.verdict}: {row.note}"
    interval = f"{row.change:+.1%}, 95 % interval {row.low:+.1%} to {row.high:+.1%}"
    why = {
        TimeVerdict.SAME: f"the whole interval is within ±{margin:.0%}",
        TimeVerdict.FASTER: f"the whole interval is below -{margin:.0%}",
        TimeVerdict.SLOWER: f"the whole interval is above +{margin:.0%}",
        TimeVerdict.AMBIGUOUS: row.note or f"the interval reaches across ±{margin:.0%}; more rounds narrow it",
    }[row.verdict]
    return f"{row.key}: {row.verdict}: {interval}; {why}"
