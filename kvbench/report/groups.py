"""Records that may stand in one table: one model, one workload, one machine setting, many compressors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from kvbench.cache.growth import with_headroom
from kvbench.compressors.methods.none import IN_16_BIT
from kvbench.measure.parts import WITH_INTERVALS
from kvbench.measure.parts.memory import MemoryResult
from kvbench.report.columns import DETAILS, SUMMARY, Cell, Column
from kvbench.report.columns.memory import BODY_BITS, body_bits
from kvbench.report.numbers import fixed, short
from kvbench.report.pareto import SAME_BITS, Point, clear_frontier
from kvbench.report.partly import partly_remarks
from kvbench.report.shift import Shift, shift_columns, shift_remarks, shifts
from kvbench.runs.records import Record
from kvbench.storage.units import bytes_in_words

BASELINES = ("none", IN_16_BIT, "hf")
"""Measured in every run; they head their table and take no part in the race for the frontier."""

LARGEST_OVERLAP = 0.05
"""Share of what is scored that calibration may have read before a table says so; formulas of a genre recur."""

LONGEST_REASON = 240
"""Characters; messages of allocators run to many times that."""


@dataclass(frozen=True)
class Group:
    """The rows of one table, in reading order: baselines, then from many bits to few, then what failed.

    ``shifts`` holds, by compressor, what calibration on another domain costs, where another workload measured it.
    """

    records: tuple[Record, ...]
    shifts: Mapping[str, Shift] = field(default_factory=dict)
    _known: dict[Column, list[Cell | None]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Columns at hand: whether one is shown is decided by its cells."""

    @property
    def title(self) -> str:
        """Model and workload."""
        trial = self.records[0].trial
        return f"{trial.model} · {trial.workload.name}"

    @property
    def setting(self) -> str:
        """Dtype, device, threads, seed, how the caches were read and the memory that a process had, in one line."""
        trial = self.records[0].trial
        threads = f"{trial.threads} thread{'s' * (trial.threads != 1)}"
        read = "" if trial.attention == "auto" else f", attention {trial.attention}"
        limit = "" if trial.memory_limit is None else f", at most {bytes_in_words(trial.memory_limit)} a process"
        return f"{trial.dtype} on {trial.device}, {threads}, seed {trial.seed}{read}{limit}"

    @property
    def workload(self) -> tuple[str, ...]:
        """What was measured, a line for each part."""
        parts = self.records[0].trial.workload.parts
        return tuple(f"{name}: {settings.in_words}" for name, settings in parts.items())

    @property
    def compressors(self) -> tuple[Record, ...]:
        """Those with a result, without the baselines."""
        return tuple(record for record in self.records if record.status == "ok" and not is_baseline(record))

    @property
    def failed(self) -> tuple[Record, ...]:
        """Those that have no result."""
        return tuple(record for record in self.records if record.status != "ok")

    @cached_property
    def best(self) -> frozenset[str]:
        """Ids on the frontier of bits and KLD: no other compressor here beats them (:mod:`kvbench.report.pareto`)."""
        rated = [(record.id, point) for record in self.compressors if (point := rating(record)) is not None]
        return frozenset(rated[index][0] for index in clear_frontier([point for _, point in rated]))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader must know before comparing rows."""
        return (
            *_baseline_remarks(self.records),
            *_flags(self.records),
            *_leaks(self.records),
            *_missed(self.records),
            *partly_remarks(self.records),
            *_machines(self.records),
            *_texts(self.records),
            *shift_remarks(self.shifts),
            *_interval_methods(self.records),
        )

    @cached_property
    def summary(self) -> tuple[Column, ...]:
        """The columns that matter, of those that were measured."""
        size = () if any(record.memory for record in self.records) else (BODY_BITS,)
        return self._used((*size, *SUMMARY, *shift_columns(self.shifts)))

    @cached_property
    def details(self) -> dict[str, tuple[Column, ...]]:
        """All columns by the part of the workload that they belong to, of those that were measured."""
        measured = {part: any(getattr(record, part) for record in self.records) for part in DETAILS}
        return {part: self._used(columns) for part, columns in DETAILS.items() if measured[part]}

    def cells(self, column: Column) -> list[Cell | None]:
        """The column, a cell per record."""
        if column not in self._known:
            self._known[column] = [column.cell(record) for record in self.records]
        return self._known[column]

    def _used(self, columns: Sequence[Column]) -> tuple[Column, ...]:
        return tuple(column for column in columns if any(self.cells(column)))


def grouped(records: Iterable[Record]) -> list[Group]:
    """Groups in the order in which their first records come. Rows differ in nothing but compressor and machine."""
    records = list(records)
    groups: dict[str, list[Record]] = {}
    for record in records:
        same = record.trial.without_code().model_copy(update={"compressor": "", "text_sha256": {}})
        groups.setdefault(same.id, []).append(record)
    return [Group(tuple(sorted(group, key=_reading_order)), shifts(group, records)) for group in groups.values()]


def is_baseline(record: Record) -> bool:
    """True for what others are compared with."""
    return record.trial.compressor in BASELINES


def bits(record: Record) -> float | None:
    """Bits per element: of all that is allocated, or of the compressed body where memory was not measured."""
    return record.memory.bits_per_element if record.memory else body_bits(record)


def distortion(record: Record) -> float | None:
    """KLD, at least the noise floor: differences below it are none."""
    quality = record.quality
    return max(quality.kld_mean, quality.noise_floor_kld) if quality else None


def rating(record: Record) -> Point | None:
    """Bits and KLD with its interval; None where one of them was not measured."""
    size, kld, quality = bits(record), distortion(record), record.quality
    if size is None or kld is None or quality is None:
        return None
    interval = quality.kld_interval
    return Point(size, kld, kld, kld) if interval is None else Point(size, kld, interval.low, interval.high)


def row_mark(group: Group, record: Record) -> str:
    """``★`` on the frontier, ``✗`` without a result, ``!`` with bytes that miss the prediction, else a space."""
    if record.status != "ok":
        return "✗"
    if record.memory and record.memory.flagged:
        return "!"
    return "★" if record.id in group.best else " "


def why(record: Record) -> str:
    """A failure in one line of bounded length; empty for an ok record."""
    if record.failure is None:
        return ""
    message = " ".join(record.failure.message.split())
    line = f"{record.failure.type}: {message}" if message else record.failure.type
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 1]}…"


STATUS_WORDS = {
    "ok": "ok",
    "failed": "failed",
    "oom": "out of memory",
    "timeout": "timed out",
    "killed": "killed",
    "interrupted": "interrupted",
}


def baselines_first(record: Record) -> tuple[int, float]:
    """Sorts the baselines to the front, in their usual order."""
    return (0, BASELINES.index(record.trial.compressor)) if is_baseline(record) else (1, 0.0)


def _reading_order(record: Record) -> tuple[int, float]:
    if is_baseline(record):
        return baselines_first(record)
    if record.status != "ok":
        return 2, 0.0
    size = bits(record)
    return 1, 0.0 if size is None else -size


def _baseline_remarks(records: Sequence[Record]) -> list[str]:
    qualities = [record.quality for record in records if record.quality]
    if not qualities:
        return []
    perplexities = sorted({short(quality.baseline_perplexity, 4) for quality in qualities})
    floor = max(quality.noise_floor_kld for quality in qualities)
    return [f"uncompressed perplexity {' or '.join(perplexities)}; KLD noise floor {short(floor, 2)}"]


def _leaks(records: Sequence[Record]) -> list[str]:
    shares = [record.quality.calibration_overlap or 0.0 for record in records if record.quality]
    if max(shares, default=0.0) <= LARGEST_OVERLAP:
        return []
    return [
        f"! {max(shares):.1%} of the scored runs of 13 tokens were calibrated on: take another text for one of both"
    ]


def _flags(records: Sequence[Record]) -> list[str]:
    return [
        f"! {record.trial.compressor}: {_missed_by(record.memory, record.trial.memory_limit is not None)}"
        for record in records
        if record.memory and record.memory.flagged
    ]


def _missed_by(memory: MemoryResult, in_chunks: bool) -> str:
    """How far bytes are from their prediction, which is that of a prompt that comes at once."""
    error = memory.prediction_error
    if error < 0:
        return f"{-error:.1%} fewer bytes allocated than predicted"
    grown = in_chunks and memory.allocated.total <= with_headroom(memory.predicted_bytes)
    room = ", room that buffers keep as they grow by chunks" if grown else ""
    return f"{error:.1%} more bytes allocated than predicted{room}"


def _missed(records: Sequence[Record]) -> list[str]:
    """Rows that stand at their nearest size, and why."""
    return [
        f"≠ {record.trial.compressor}: {' and '.join(f'{target:g}' for target in missed)} bits were requested, its "
        f"{'smallest' if size > max(missed) else 'nearest'} setting takes {fixed(size, 2)}"
        for record in records
        if (size := bits(record)) is not None
        if (missed := [target for target in record.solved_for if abs(size - target) > SAME_BITS * target])
    ]


def _machines(records: Sequence[Record]) -> list[str]:
    timed = [record.provenance for record in records if record.speed or record.capacity]
    machines = {(where.hostname_hash, where.cpu, where.device_name) for where in timed}
    if len(machines) < 2:
        return []
    return [f"! timed on {len(machines)} machines: compare speed-ups, not times"]


def _texts(records: Sequence[Record]) -> list[str]:
    versions = {version for record in records for version in record.trial.text_sha256.items()}
    names = [name for name, _ in versions]
    return [
        f"! text {name} was not the same in all trials: do not compare their quality"
        for name in sorted(set(names))
        if names.count(name) > 1
    ]


def _interval_methods(records: Sequence[Record]) -> list[str]:
    methods = {
        part: sorted({result.interval_method for record in records if (result := getattr(record, part))} - {""})
        for part in WITH_INTERVALS
    }
    return [
        f"! {part} intervals were made by different methods ({', '.join(names)}): do not compare them"
        for part, names in methods.items()
        if len(names) > 1
    ]
