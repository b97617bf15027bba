"""The gate's verdicts in sentences, for people at a terminal, and as Markdown, for the comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from kvbench.errors import EXIT_OK, EXIT_REGRESSION
from kvbench.gate.baseline import REFRESH, Baseline
from kvbench.gate.gate import GateReport
from kvbench.gate.metrics import Tolerance
from kvbench.gate.verdicts import Cell, Row, Verdict, with_rounding

IN_WORDS = {
    "bytes_per_token": "bytes that one more token adds to the cache",
    "allocated_bytes": "bytes of the cache after the prompt",
    "largest_bytes": "most bytes of the cache while tokens were decoded",
    "predicted_bytes": "bytes predicted for the cache",
    "model_level_bytes": "bytes of bases and codebooks, which all caches of a model share",
    "kld_mean": "divergence from the uncompressed model per token, scored in blocks",
    "decode_kld_mean": "divergence from the uncompressed model per token, decoded one by one through the kernels",
    "noise_floor_kld": "divergence of the uncompressed cache from stock transformers, which is rounding",
    "perplexity": "perplexity through the cache",
}

_OF_RESULTS = {
    Verdict.GONE: "is in the baseline and was not measured: a trial that is no longer run guards nothing",
    Verdict.FAILED: "failed",
    Verdict.NEW: "is not in the baseline yet",
    Verdict.INCOMPARABLE: "was measured under other conditions than the baseline: its numbers cannot be compared",
}


def explain(report: GateReport, baseline: Baseline) -> str:
    """A paragraph for every result that is not the same, and what to do."""
    lines = [line for row in report.rows if row.verdict is not Verdict.SAME for line in _of_row(row, baseline)]
    elsewhere = [f"All was {report.elsewhere}."] if report.elsewhere else []
    return "\n".join([*lines, *elsewhere, _advice(report)]) + "\n"


def markdown(report: GateReport) -> str:
    """The verdicts as GitHub shows them: one line, and a table of what changed."""
    lines = [f"**kvbench gate** · {report.reason}", ""]
    changed = [row for row in report.rows if row.verdict is not Verdict.SAME]
    if changed:
        lines += ["| trial | metric | before | after | verdict |", "|---|---|---:|---:|---|"]
        lines += [f"| {' | '.join(cells)} |" for row in changed for cells in _table_lines(row)]
        lines.append("")
    same = [row.key for row in report.rows if row.verdict is Verdict.SAME]
    if same:
        keys = "\n".join(f"- `{key}`" for key in same)
        lines += [f"<details><summary>{len(same)} the same</summary>", "", keys, "", "</details>"]
    return "\n".join(lines).rstrip() + "\n"


def _of_row(row: Row, baseline: Baseline) -> Iterator[str]:
    what = _OF_RESULTS.get(row.verdict)
    if what is not None:
        yield f"{row.key} {what}{': ' if row.note else ''}{row.note}."
        return
    if row.note:
        yield f"{row.key}: {row.note}."
    entry = baseline.entries[row.key]
    tolerances = with_rounding(baseline.tolerances_of(entry), entry.side.values)
    for name, cell in row.cells.items():
        if cell.verdict is not Verdict.SAME:
            yield f"{row.key}: {_of_cell(name, cell, tolerances[name])}"


def _of_cell(name: str, cell: Cell, tolerance: Tolerance) -> str:
    what = f"{IN_WORDS[name]} ({name})"
    if cell.before is None or cell.after is None:
        return f"{what}: {'not in the baseline' if cell.before is None else 'not measured any more'}."
    moved = "fell" if cell.after < cell.before else "grew"
    share = f", {cell.after / cell.before - 1:+.2%}" if cell.before else ""
    allowed = f"{tolerance.relative:.1%} may pass" if tolerance.relative else "not one may pass"
    return f"{what} {moved} from {cell.before:,.12g} to {cell.after:,.12g}{share}; {allowed}."


def _advice(report: GateReport) -> str:
    if report.exit_code == EXIT_OK:
        return "Nothing changed."
    if report.exit_code != EXIT_REGRESSION:
        return f"Nothing can be decided: {REFRESH} on a machine and with texts that stay as they are."
    if any(row.verdict is Verdict.FAILED for row in report.rows):
        return "What failed has its reason and traceback in the results' records.jsonl."
    return f"A change for the better must be accepted, too, before it is guarded: {REFRESH}."


def _table_lines(row: Row) -> Iterator[tuple[str, ...]]:
    cells = {name: cell for name, cell in row.cells.items() if cell.verdict is not Verdict.SAME}
    if row.note or not cells:
        yield f"`{_escaped(row.key)}`", _escaped(row.note), "", "", str(row.verdict)
    for name, cell in cells.items():
        yield (
            f"`{_escaped(row.key)}`",
            name,
            _number(cell.before),
            _number(cell.after),
            str(cell.verdict or "not judged"),
        )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.9g}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
