"""Single samples of lm-evaluation-harness, as its log has them, paired with those of the uncompressed cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvbench.measure.parts.tasks import Answer, TaskScore

LONGEST = 2000
"""Characters kept of a prompt's end."""


@dataclass(frozen=True)
class HarnessRun:
    """What the harness gives of one arm: ``results`` by task and metric as it names them, and its log of samples."""

    results: dict[str, dict[str, Any]]
    samples: Mapping[str, list[dict[str, Any]]]
    higher_is_better: Mapping[str, Mapping[str, bool | None]]

    @classmethod
    def of(cls, whole: Mapping[str, Any]) -> HarnessRun:
        """From what ``simple_evaluate`` returns with ``log_samples``."""
        results = {task: dict(metrics) for task, metrics in whole["results"].items()}
        return cls(results, whole.get("samples") or {}, whole.get("higher_is_better") or {})

    def scores(self) -> Iterator[tuple[str, str, dict[int, dict[str, Any]]]]:
        """Task, metric (with its filter, as in ``results``) and samples by document, of metrics that are shares of
        right answers: between 0 and 1, and better when higher."""
        for task, logged in self.samples.items():
            for name, better in self.higher_is_better.get(task, {}).items():
                for kind in dict.fromkeys(sample["filter"] for sample in logged):
                    rows = {row["doc_id"]: row for row in logged if row["filter"] == kind and name in row}
                    if better and rows and all(_is_share(row[name]) for row in rows.values()):
                        yield task, f"{name},{kind}", rows


def paired(before: HarnessRun, after: HarnessRun) -> dict[str, tuple[TaskScore, ...]]:
    """By metric: the tasks that have it, sample by sample, uncompressed and compressed."""
    first = {(task, metric): rows for task, metric, rows in before.scores()}
    tasks: dict[str, list[TaskScore]] = {}
    for task, metric, rows in after.scores():
        if (task, metric) not in first:  # a score that is a share here, and by the uncompressed cache is not
            continue
        pairs = [(document, first[task, metric][document], row) for document, row in rows.items()]
        name = metric.partition(",")[0]
        answers = tuple(_answer(document, name, *pair) for document, *pair in pairs)
        tasks.setdefault(metric, []).append(TaskScore(task=task, answers=answers, attention=""))
    return {metric: tuple(scores) for metric, scores in tasks.items()}


def _answer(document: int, metric: str, before: dict[str, Any], after: dict[str, Any]) -> Answer:
    return Answer(
        sample=document,
        question=str(after["arguments"][0][0])[-LONGEST:],
        references=(str(after["target"]),),
        baseline=_told(before),
        compressed=_told(after),
        baseline_score=float(before[metric]),
        score=float(after[metric]),
    )


def _told(sample: dict[str, Any]) -> str:
    """What was generated, or the log-likelihoods of the choices."""
    return "; ".join(str(response) for response in sample["filtered_resps"])


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1
