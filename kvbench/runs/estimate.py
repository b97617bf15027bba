"""How long trials will take, from records of earlier ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from kvbench.runs.records import Record
from kvbench.runs.trials import Trial


@dataclass(frozen=True)
class Estimate:
    """Seconds that ``known`` trials will take in all; of the others nothing alike was measured."""

    seconds: float
    known: int


def estimate(trials: Sequence[Trial], earlier: Iterable[Record]) -> Estimate:
    """What ``trials`` will take, by ``earlier`` records that are ok: of the same trial by other code, else the median
    of its model and workload. What trials share the first one pays for: a run of few trials takes longer than this."""
    by_trial: dict[str, float] = {}
    by_workload: dict[str, list[float]] = {}
    for record in earlier:
        if record.status != "ok":
            continue
        seconds = (record.provenance.finished - record.provenance.started).total_seconds()
        by_trial[record.trial.without_code().id] = seconds
        by_workload.setdefault(_alike(record.trial), []).append(seconds)
    known = [
        by_trial.get(trial.without_code().id, median(by_workload[_alike(trial)]))
        for trial in trials
        if _alike(trial) in by_workload
    ]
    return Estimate(sum(known), len(known))


def _alike(trial: Trial) -> str:
    """What trials of about one length have in common: all but the compressor, the code and what fits it."""
    same = {"compressor": "", "code": "", "packages": {}, "text_sha256": {}}
    return trial.model_copy(update=same).id
