"""The matrix of what was calibrated on and what is scored."""

from __future__ import annotations

from fake_records import MACHINE, trial
from whole_record import QUALITY

from kvbench.measure.parts.quality import QualityWorkload
from kvbench.report.domain_map import domain_maps
from kvbench.report.groups import grouped
from kvbench.runs.records import Record
from kvbench.runs.trials import Workload


def record(spec: str, calibration: str, scored: str, kld: float, calibrates: bool = True) -> Record:
    settings = QualityWorkload(text=scored, calibration_text=calibration)
    texts = {f"test {scored}": "ab" * 32} | ({f"calibration {calibration}": "cd" * 32} if calibrates else {})
    made = trial(spec, Workload(name=f"{calibration}-to-{scored}", quality=settings))
    made = made.model_copy(update={"text_sha256": texts})
    return Record.of(made, "ok", MACHINE, quality=QUALITY.model_copy(update={"kld_mean": kld}))


MATRIX = [
    record("ftc:bits=3", calibration, scored, 0.01 * (1 if calibration == scored else times))
    for calibration in ("essays", "pydoc")
    for scored, times in (("essays", 3), ("pydoc", 5))
]


def test_what_is_lost_is_told_over_the_domains_own() -> None:
    (figure,) = domain_maps(grouped([*MATRIX, record("int:bits=4", "essays", "essays", 0.02, calibrates=False)]))
    assert "ftc:bits=3 at most 5.0 times" in figure.description and "int:bits=4" not in figure.description
    assert figure.png().startswith(b"\x89PNG")


def test_one_text_is_no_matrix() -> None:
    assert domain_maps(grouped(MATRIX[:1])) == [] == domain_maps([])
    assert domain_maps(grouped(MATRIX[1:2])) == [], "nothing to compare with"
