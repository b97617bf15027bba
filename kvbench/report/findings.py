"""What a group of records says, in a few sentences with their numbers."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.report.columns import Cell
from kvbench.report.columns.capacity import OVER
from kvbench.report.columns.quality import KLD, TOP1
from kvbench.report.columns.speed import TO_HF, TO_NONE
from kvbench.report.groups import Group, bits, distortion
from kvbench.report.numbers import fixed, short
from kvbench.report.pareto import SAME_BITS
from kvbench.storage.units import bytes_in_words

FAITHFUL = 0.95
"""Share of same top-1 tokens from which a compressed cache counts as close to the uncompressed one."""


@dataclass(frozen=True)
class Finding:
    """A question, its answer (a compressor, or several, or none) and the numbers behind it."""

    question: str
    answer: str
    numbers: str


def findings(group: Group) -> list[Finding]:
    """Smallest faithful cache, fastest decoding, the most in a budget, the frontier; each only where measured."""
    findings = (_smallest(group), _fastest(group), _most_in_budget(group), _frontier(group))
    return [finding for finding in findings if finding]


def _smallest(group: Group) -> Finding | None:
    judged = [(size, record) for record in group.compressors if (size := bits(record)) is not None and record.quality]
    if not judged:
        return None
    question = f"Fewest bits with at least {FAITHFUL:.0%} same top-1"
    faithful = [(size, record) for size, record in judged if record.quality and record.quality.same_top1 >= FAITHFUL]
    if not faithful:
        return Finding(question, "none of these", f"{len(judged)} compressors measured")
    least = min(size for size, _ in faithful)
    as_small = [(size, record) for size, record in faithful if size <= least * (1 + SAME_BITS)]
    size, record = min(as_small, key=lambda pair: distortion(pair[1]) or 0.0)
    parts = [f"{fixed(size, 2)} bits per element"]
    if record.memory:
        parts.append(f"ratio {fixed(record.memory.ratio_allocated, 2)}")
    parts += [f"KLD {_text(KLD.cell(record))}", f"same top-1 {_text(TOP1.cell(record))}"]
    return Finding(question, record.trial.compressor, ", ".join(parts))


def _fastest(group: Group) -> Finding | None:
    timed = [(record.speed.ratio_to_none, record) for record in group.compressors if record.speed]
    rated = [(ratio, record) for ratio, record in timed if ratio is not None]
    if not rated:
        return None
    _, record = max(rated, key=lambda pair: pair[0])
    numbers = [_text(column.cell(record), unit) for column, unit in ((TO_NONE, " × none"), (TO_HF, " × hf"))]
    return Finding("Fastest decoding", record.trial.compressor, ", ".join(text for text in numbers if text))


def _most_in_budget(group: Group) -> Finding | None:
    filled = [(record.capacity, record) for record in group.compressors if record.capacity]
    if not filled:
        return None
    capacity, record = max(filled, key=lambda pair: pair[0].tokens_per_s)
    ratios = [_text(column.cell(record), f" × {name}") for name, column in OVER.items()]
    rows = f"{short(capacity.tokens_per_s)} tokens/s by {capacity.batch:,} rows"
    question = f"Most tokens a second within {bytes_in_words(capacity.budget)}"
    return Finding(question, record.trial.compressor, ", ".join([rows, *(text for text in ratios if text)]))


def _frontier(group: Group) -> Finding | None:
    if not group.best:
        return None
    best = [record for record in group.records if record.id in group.best]
    rated = [record for record in group.compressors if record.quality and bits(record) is not None]
    numbers = (
        f"{len(best)} of {len(rated)}; every other one is beaten by one of its bits (within {SAME_BITS:.0%}) or fewer"
    )
    return Finding("Pareto frontier of bits and KLD", ", ".join(record.trial.compressor for record in best), numbers)


def _text(cell: Cell | None, unit: str = "") -> str:
    """The number with its interval; empty without one."""
    return f"{cell.text}{unit} {cell.spread}".strip() if cell else ""
