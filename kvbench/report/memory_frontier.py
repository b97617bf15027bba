"""The out-of-memory frontier: the longest prompt at every batch and the largest batch at every prompt that a compressor
could be run with, and where memory was too small.

Trials that differ in nothing but their sizes and the compressor make one table, if several sizes were tried and memory
was too small for one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvbench.report.columns import Cell
from kvbench.report.groups import Group, baselines_first, is_baseline
from kvbench.report.numbers import short
from kvbench.runs.canonical import canonical_json, content
from kvbench.runs.dominated import NOT_TRIED, OUT_OF_ROOM, SIZES, leaves
from kvbench.runs.records import Record
from kvbench.runs.trials import Trial
from kvbench.storage.units import bytes_in_words

GIB = 2**30

IN_WORDS = (
    "The longest prompt and the largest batch that ran; in brackets the smallest that ran out of memory (✗), or was "
    "not tried because a smaller one had (–). ≥ where the largest that was tried ran."
)


@dataclass(frozen=True)
class Sized:
    """A trial of ``prompt`` tokens in each of ``batch`` rows: it ran, ran out of memory, or was not tried for that."""

    prompt: int
    batch: int
    ran: bool
    tried: bool = True


@dataclass(frozen=True)
class MemoryColumn:
    """A size in a table: ``title`` may have several lines; ``cell`` is of the trials of one compressor."""

    title: str
    description: str
    cell: Callable[[Sequence[Sized]], Cell | None]

    @property
    def heading(self) -> str:
        """The title in one line."""
        return self.title.replace("\n", ", ")


@dataclass(frozen=True)
class MemoryRow:
    """A compressor with a cell for every column."""

    compressor: str
    baseline: bool
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class MemoryFrontier:
    """A model in one setting and so much memory."""

    model: str
    setting: str
    columns: tuple[MemoryColumn, ...]
    rows: tuple[MemoryRow, ...]


def memory_frontiers(records: Iterable[Record]) -> list[MemoryFrontier]:
    """In the order of their first records."""
    alike: dict[str, list[tuple[Record, Sized]]] = {}
    for record in records:
        if (sized := _sized(record)) is not None:
            alike.setdefault(_alike(record), []).append((record, sized))
    return [_frontier(group) for group in alike.values() if _is_frontier([sized for _, sized in group])]


def _is_frontier(trials: Sequence[Sized]) -> bool:
    return len({(each.prompt, each.batch) for each in trials}) > 1 and not all(each.ran for each in trials)


def _frontier(group: Sequence[tuple[Record, Sized]]) -> MemoryFrontier:
    first = group[0][0]
    limit = _limit(first)
    by_compressor: dict[str, list[Sized]] = {}
    for record, sized in sorted(group, key=lambda each: baselines_first(each[0])):
        by_compressor.setdefault(record.trial.compressor, []).append(sized)
    baselines = {record.trial.compressor for record, _ in group if is_baseline(record)}
    columns = _columns([sized for _, sized in group], limit)
    rows = tuple(
        MemoryRow(name, name in baselines, tuple(column.cell(trials) for column in columns))
        for name, trials in by_compressor.items()
    )
    whole = "" if first.trial.memory_limit else f", {bytes_in_words(limit)} in all"
    return MemoryFrontier(first.trial.model, Group((first,)).setting + whole, columns, rows)


def _sized(record: Record) -> Sized | None:
    """None where it says nothing of memory, or where parts of its workload differ in size."""
    sizes = _sizes(record.trial)
    if sizes is None or record.status not in ("ok", *OUT_OF_ROOM):
        return None
    tried = record.failure is None or record.failure.type != NOT_TRIED
    return Sized(*sizes, record.status == "ok", tried)


def _sizes(trial: Trial) -> tuple[int, int] | None:
    """Prompt and batch."""
    memory, speed = trial.workload.memory, trial.workload.speed
    sizes = {(memory.prompt, memory.batch)} if memory else set()
    sizes |= {(speed.prompt, speed.batch)} if speed else set()
    return sizes.pop() if len(sizes) == 1 else None


def _alike(record: Record) -> str:
    """What agrees within a table: everything but the compressor and the sizes."""
    fields = content(record.trial.without_code()) | {"compressor": "", "text_sha256": {}}
    workload = leaves(fields.pop("workload") | {"name": ""})
    rest = {" ".join(path): value for path, value in workload.items() if path[-1] not in SIZES}
    return canonical_json([fields, rest, _limit(record)])


def _limit(record: Record) -> int:
    """Bytes that there were: of the trial's process, else of the accelerator or the machine."""
    origin = record.provenance
    return record.trial.memory_limit or origin.device_memory or origin.memory_total


def _columns(trials: Sequence[Sized], limit: int) -> tuple[MemoryColumn, ...]:
    prompts, batches = sorted({each.prompt for each in trials}), sorted({each.batch for each in trials})
    columns: list[MemoryColumn] = []
    if len(prompts) > 1:
        columns += [_longest_prompt(batch) for batch in batches]
        columns.append(_per_gib("longest prompt", lambda each: each.prompt, prompts[-1], limit))
    if len(batches) > 1:
        columns += [_largest_batch(prompt) for prompt in prompts]
        columns.append(_per_gib("largest batch", lambda each: each.batch, batches[-1], limit))
    return tuple(columns)


def _longest_prompt(batch: int) -> MemoryColumn:
    return MemoryColumn(
        f"longest prompt\nbatch {batch:,}",
        f"Tokens of the longest prompt that {batch:,} rows ran with.",
        lambda trials: _reached([each for each in trials if each.batch == batch], lambda each: each.prompt),
    )


def _largest_batch(prompt: int) -> MemoryColumn:
    return MemoryColumn(
        f"largest batch\n{prompt:,} tokens",
        f"The most rows that ran with prompts of {prompt:,} tokens.",
        lambda trials: _reached([each for each in trials if each.prompt == prompt], lambda each: each.batch),
    )


def _per_gib(what: str, size: Callable[[Sized], int], largest: int, limit: int) -> MemoryColumn:
    def cell(trials: Sequence[Sized]) -> Cell | None:
        most = max((size(each) for each in trials if each.ran), default=None)
        if most is None:
            return None
        return Cell(f"{'≥ ' if most == largest else ''}{short(most * GIB / limit)}", most * GIB / limit)

    return MemoryColumn(f"{what}\nper GiB", f"The {what} of all that ran, over the GiB that there were.", cell)


def _reached(trials: Sequence[Sized], size: Callable[[Sized], int]) -> Cell | None:
    """The largest that ran and the smallest that did not; None where neither was measured."""
    if not trials:
        return None
    ran = max((size(each) for each in trials if each.ran), default=0)
    short_of = min((each for each in trials if not each.ran), key=size, default=None)
    if short_of is None:
        return Cell(f"≥ {ran:,}", ran)
    reached = f"{ran:,}" if ran else "none"
    return Cell(f"{reached} ({size(short_of):,} {'✗' if short_of.tried else '–'})", ran)
