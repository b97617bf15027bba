"""Single answers, side by side: what the uncompressed cache answered, and what the compressed one did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kvbench.measure.parts.generation import Generated
from kvbench.measure.parts.tasks import Answer, TaskScore
from kvbench.report.groups import Group
from kvbench.runs.records import Record

LONGEST_TEXT = 400
"""Characters of an answer or a question; models that ramble fill pages."""

BEFORE_DIFFERENCE = 100
"""Characters shown of two texts before they differ."""

MOST_ROWS = 20_000
"""Of a page, beyond which those that did not change are left out."""

CHANGES = ("worse", "better", "different", "same")


@dataclass(frozen=True)
class AnswerRow:
    """One question or text; ``change`` is one of :data:`CHANGES`, by score where there is one."""

    compressor: str
    task: str
    change: str
    question: str
    references: str
    baseline: str
    compressed: str
    scores: str


@dataclass(frozen=True)
class AnswerTable:
    """Those of a section, what got worse first; ``left_out`` counts unchanged ones for which there was no room."""

    rows: tuple[AnswerRow, ...]
    left_out: int

    @property
    def compressors(self) -> tuple[str, ...]:
        """For choosing among them."""
        return tuple(dict.fromkeys(row.compressor for row in self.rows))

    @property
    def packable(self) -> dict[str, Any]:
        """As plain JSON: every text once, in ``texts``, and for each field of a row the places of its texts there."""
        places: dict[str, int] = {}
        columns = {
            each.name: [places.setdefault(getattr(row, each.name), len(places)) for row in self.rows]
            for each in fields(AnswerRow)
        }
        return {"texts": [*places], "columns": columns}

    @property
    def counts(self) -> dict[str, int]:
        """How many changed how."""
        return {change: sum(row.change == change for row in self.rows) for change in CHANGES}


def answer_tables(groups: Sequence[Group]) -> list[AnswerTable | None]:
    """The answers of all compressors of each of a page's groups; None where nothing was asked of them."""
    counts = [_count(group) for group in groups]
    whole = sum(counts) <= MOST_ROWS
    return [_answer_table(group, count, whole) if count else None for group, count in zip(groups, counts, strict=True)]


def _count(group: Group) -> int:
    """Answers and texts of all compressors."""
    answers = sum(len(task.answers) for record in group.compressors for task in _tasks(record))
    return answers + sum(len(_texts(record)) for record in group.compressors)


def _answer_table(group: Group, count: int, whole: bool) -> AnswerTable:
    """All ``count`` of them if ``whole``, else those that changed."""
    rows = [
        _row(record.trial.compressor, task.task, answer)
        for record in group.compressors
        for task in _tasks(record)
        for answer in task.answers
        if whole or answer.score != answer.baseline_score
    ]
    rows.extend(
        _text_row(record.trial.compressor, place, text)
        for record in group.compressors
        for place, text in enumerate(_texts(record), 1)
        if whole or text.diverges_at is not None
    )
    rows.sort(key=lambda row: CHANGES.index(row.change))
    return AnswerTable(tuple(rows), count - len(rows))


def _texts(record: Record) -> Sequence[Generated]:
    return record.generation.texts if record.generation else ()


def _tasks(record: Record) -> Iterator[TaskScore]:
    if record.tasks:
        yield from record.tasks.tasks
    if record.needles:
        yield from (cell.score for cell in record.needles.cells)


def _row(compressor: str, task: str, answer: Answer) -> AnswerRow:
    moved = answer.score - answer.baseline_score
    return AnswerRow(
        compressor,
        f"{task} · {answer.sample + 1}",
        "worse" if moved < 0 else "better" if moved > 0 else "same",
        _cut(answer.question),
        _cut(f"expected: {', '.join(answer.references)}"),
        _cut(answer.baseline),
        _cut(answer.compressed),
        f"{100 * answer.baseline_score:.0f} → {100 * answer.score:.0f}",
    )


def _text_row(compressor: str, place: int, text: Generated) -> AnswerRow:
    """The two texts from shortly before they differ."""
    pairs = zip(text.baseline, text.compressed, strict=False)
    same = next((index for index, (first, second) in enumerate(pairs) if first != second), 0)
    start = max(0, same - BEFORE_DIFFERENCE) if text.diverges_at is not None else 0
    before = "…" if start else ""
    return AnswerRow(
        compressor,
        f"text · {place}",
        "same" if text.diverges_at is None else "different",
        _cut(text.prompt),
        "" if text.diverges_at is None else f"differs from token {text.diverges_at:,} on",
        _cut(before + text.baseline[start:]),
        _cut(before + text.compressed[start:]),
        f"{text.baseline_tokens:,} → {text.tokens:,} tokens",
    )


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
