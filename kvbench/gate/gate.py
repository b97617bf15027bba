"""The gate: results against the baseline, down to an exit code.

    0  every entry of the baseline was measured again and is the same; new entries are listed
    1  an entry changed in either direction, is gone, failed, or contradicts itself (:mod:`kvbench.gate.agreement`)
    3  cannot decide: nothing measured, nothing in common, or measured under other conditions

A number better than the baseline also fails: either it is an improvement, and then the baseline must be refreshed
before it can guard it, or the baseline is wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from kvbench.errors import EXIT_OK, EXIT_REGRESSION, EXIT_UNDECIDED
from kvbench.gate.baseline import REFRESH, Baseline, processors_of
from kvbench.gate.metrics import TOLERANCES
from kvbench.gate.table import plain, verdict_table
from kvbench.gate.verdicts import Row, Side, Verdict, by_key, judge_result
from kvbench.runs.records import Record

_REGRESSION = (Verdict.FAILED, Verdict.GONE, Verdict.WORSE, Verdict.BETTER)


@dataclass(frozen=True)
class GateReport:
    """The verdicts, the exit code they amount to, and in one line why."""

    rows: list[Row]
    exit_code: int
    reason: str
    elsewhere: str = ""
    """Where something changed: that other processors measured the baseline, if so."""

    def to_json(self) -> str:
        """One JSON document: exit code, reason, and every row with its verdict."""
        rows = [{"key": row.key, "verdict": str(row.verdict)} for row in self.rows]
        return json.dumps({"exit_code": self.exit_code, "reason": self.reason, "rows": rows}, indent=1)

    def render(self) -> str:
        """Plain text: everything that is not the same, and the reason."""
        rows = [row for row in self.rows if row.verdict is not Verdict.SAME]
        return (plain(verdict_table(rows, hide_same=True)) if rows else "") + self.reason + "\n"


def gate(records: Iterable[Record], baseline: Baseline) -> GateReport:
    """Judge results against a baseline.

    Raises UndecidedError if the results have two records under one key that were measured under different conditions.
    """
    measured = by_key(records)
    results = {key: Side.of(record) for key, record in measured.items()}
    rows = [
        judge_result(key, entry.side, results.get(key), baseline.tolerances_of(entry))
        for key, entry in baseline.entries.items()
    ]
    new = [key for key in results if key not in baseline.entries]
    rows += [judge_result(key, None, results[key], TOLERANCES) for key in new]
    return _report(rows, len(results) - len(new), _elsewhere(processors_of(measured.values()), baseline.processors))


def _elsewhere(here: tuple[str, ...], there: tuple[str, ...]) -> str:
    if not there or not here or here == there:
        return ""
    return f"measured on {' and '.join(here)}, the baseline on {' and '.join(there)}, which may round otherwise"


def _report(rows: list[Row], in_common: int, elsewhere: str) -> GateReport:
    counts = Counter(row.verdict for row in rows)
    summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    if not in_common and not counts[Verdict.FAILED]:
        return GateReport(rows, EXIT_UNDECIDED, "undecided: no result has an entry in the baseline")
    if any(counts[verdict] for verdict in _REGRESSION):
        told = [f"changed: {summary}", elsewhere, "" if counts[Verdict.FAILED] else f"if that is meant, {REFRESH}"]
        return GateReport(rows, EXIT_REGRESSION, "; ".join(filter(None, told)), elsewhere)
    if counts[Verdict.INCOMPARABLE]:
        return GateReport(rows, EXIT_UNDECIDED, f"undecided: {summary}; {REFRESH}")
    return GateReport(rows, EXIT_OK, f"passed: {summary}")
