"""KLD when calibrated on another domain: which workloads are joined, and over which documents."""

from __future__ import annotations

import fake_records as fake
import pytest

from kvbench.measure.parts.memory import MemoryWorkload
from kvbench.measure.parts.quality import QualityWorkload
from kvbench.report.groups import grouped
from kvbench.report.shift import shifts
from kvbench.report.tables import markdown
from kvbench.runs.records import Record
from kvbench.runs.trials import Workload

BOTH = QualityWorkload(text="essays+pydoc", calibration_text="essays+pydoc", documents=4)
HOME = Workload(name="home", quality=BOTH, memory=MemoryWorkload())
AWAY = Workload(name="away", quality=QualityWorkload(text="essays", calibration_text="pydoc", documents=2))
DOCUMENTS = ("essays/1", "pydoc/1", "essays/2", "pydoc/2")


def measured(
    outcome: fake.Outcome,
    workload: Workload,
    documents: tuple[str, ...],
    klds: tuple[float, ...],
    calibrates: bool = True,
) -> Record:
    record = fake.ok(outcome, workload)
    texts = {"calibration x": "0"} if calibrates else {}
    quality = record.quality.model_copy(
        update={"document_ids": documents, "per_document_kld": klds, "kld_mean": sum(klds) / len(klds)}
    )
    trial = record.trial.model_copy(update={"text_sha256": texts})
    return record.model_copy(update={"trial": trial, "quality": quality})


def home(calibrates: bool = True) -> Record:
    return measured(fake.OUTCOMES[10], HOME, DOCUMENTS, (0.02, 0.5, 0.04, 0.5), calibrates)


def away(workload: Workload = AWAY, documents: tuple[str, ...] = ("essays/1", "essays/2")) -> Record:
    return measured(fake.OUTCOMES[10], workload, documents, (0.06, 0.12))


def test_the_ratio_is_over_the_documents_that_both_scored():
    found = shifts([home()], [home(), away()])["kvtc:bits=3"]
    assert found.kld == pytest.approx(0.09)
    assert found.ratio == pytest.approx(3.0)
    assert (found.calibration, found.documents) == ("pydoc", "2 documents of essays")


@pytest.mark.parametrize(
    "change",
    [
        {"calibration_text": "essays"},
        {"calibration_text": "essays+pydoc"},
        {"text": "docstrings"},
        {"length": 2048},
        {"prefix": 128},
    ],
)
def test_workloads_that_are_no_shift_of_each_other_are_not_joined(change):
    other = Workload(name="away", quality=AWAY.quality.model_copy(update=change))
    assert shifts([home()], [away(other)]) == {}


def test_other_documents_other_settings_and_methods_without_calibration_have_none():
    assert shifts([home()], [away(documents=("essays/1", "essays/9"))]) == {}
    assert shifts([home()], [away(documents=())]) == {}
    halved = away().trial.model_copy(update={"dtype": "bfloat16"})
    assert shifts([home()], [away().model_copy(update={"trial": halved})]) == {}
    assert shifts([home(calibrates=False)], [away()]) == {}


def test_the_table_shows_it_where_it_was_measured():
    none = measured(fake.OUTCOMES[0], HOME, DOCUMENTS, (0.0,) * 4, calibrates=False)
    text = markdown([none, home(), away()])
    first, second = text.split("### ")[1:]
    assert "KLD other domain | × in domain |" in first and "3.00 |" in first
    assert "calibrated on pydoc, 2 documents of essays" in first
    assert "other domain" not in second
    assert not any(grouped([home()])[0].shifts)
