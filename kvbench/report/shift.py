"""What a method loses when it was calibrated on another domain: two workloads joined by compressor and document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kvbench.measure.parts.quality import QualityResult
from kvbench.measure.results import Interval
from kvbench.report.columns import Cell, Column
from kvbench.report.numbers import fixed, measured, spread
from kvbench.runs.records import Record


@dataclass(frozen=True)
class Shift:
    """KLD when calibrated on another domain, and how many times the KLD over the same ``documents`` that is."""

    kld: float
    interval: Interval | None
    ratio: float | None
    calibration: str
    documents: str


def shifts(home: Sequence[Record], elsewhere: Iterable[Record]) -> dict[str, Shift]:
    """By compressor of ``home``: its shift, if a record ``elsewhere`` in the same setting measures one.

    Only methods that calibrate have any. The text scored there is among those calibrated on here, and not among those
    calibrated on there; length, prompt and block are the same, and the documents are some of the documents here.
    """
    shifts = {}
    known = {record.trial.compressor: record for record in home if record.quality and calibrates(record)}
    for record in elsewhere:
        unshifted = known.get(record.trial.compressor)
        if unshifted is None or record.quality is None or not _is_shift(unshifted, record):
            continue
        assert unshifted.quality is not None and record.trial.workload.quality is not None
        same = _kld_of(unshifted.quality, record.quality.document_ids)
        if same is not None:
            wanted = record.trial.workload.quality
            shifts[record.trial.compressor] = Shift(
                record.quality.kld_mean,
                record.quality.kld_interval,
                record.quality.kld_mean / same if same > 0 else None,
                wanted.calibration_text,
                f"{wanted.documents} documents of {wanted.text}",
            )
    return shifts


def shift_columns(shifts: Mapping[str, Shift]) -> tuple[Column, ...]:
    """The shifted KLD, and its ratio to the KLD in the domain."""
    return (
        Column(
            "KLD other\ndomain",
            "KLD of the same compressor calibrated on another text than it is scored on, over some of the documents; "
            "only for methods that calibrate.",
            lambda record: _kld(shifts.get(record.trial.compressor)),
        ),
        Column(
            "× in\ndomain",
            "That KLD over the KLD of the same documents when their domain was calibrated on: 1 is no loss.",
            lambda record: _ratio(shifts.get(record.trial.compressor)),
        ),
    )


def shift_remarks(shifts: Mapping[str, Shift]) -> list[str]:
    """What the other domain is."""
    return [
        f"KLD other domain: calibrated on {calibration}, {documents}"
        for calibration, documents in dict.fromkeys((one.calibration, one.documents) for one in shifts.values())
    ]


def _kld(shift: Shift | None) -> Cell | None:
    if shift is None:
        return None
    text = measured(shift.kld, shift.interval, decimals=5)
    return Cell(text, shift.kld, spread(shift.kld, shift.interval, decimals=5))


def _ratio(shift: Shift | None) -> Cell | None:
    return None if shift is None or shift.ratio is None else Cell(fixed(shift.ratio, 2), shift.ratio)


def calibrates(record: Record) -> bool:
    """Whether a calibration text went into the compressor."""
    return any(name.startswith("calibration ") for name in record.trial.text_sha256)


def _is_shift(home: Record, other: Record) -> bool:
    here, there = home.trial.workload.quality, other.trial.workload.quality
    if here is None or there is None or _setting(home) != _setting(other):
        return False
    scored = _texts(there.text)
    return (
        (here.length, here.prefix, here.block) == (there.length, there.prefix, there.block)
        and scored <= _texts(here.text)
        and scored <= _texts(here.calibration_text)
        and not scored & _texts(there.calibration_text)
    )


def _setting(record: Record) -> tuple[object, ...]:
    trial = record.trial
    return trial.model, trial.weights_sha256, trial.dtype, trial.device, trial.seed, trial.attention


def _texts(name: str) -> set[str]:
    return {*name.split("+")}


def _kld_of(quality: QualityResult, documents: Sequence[str]) -> float | None:
    """Mean KLD over these documents, which are equally long; None unless all of them were scored."""
    by_document = dict(zip(quality.document_ids, quality.per_document_kld, strict=False))
    if not documents or not by_document.keys() >= {*documents}:
        return None
    return sum(by_document[name] for name in documents) / len(documents)
