"""Charts as files, whoever draws them."""

from __future__ import annotations

import fake_records as fake
import pytest

from kvbench.report import pictures as module
from kvbench.report.figure import Figure
from kvbench.report.html import write_report
from kvbench.report.page import page
from kvbench.report.pictures import pictures


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Charts that processes draw, also where there is one core."""
    monkeypatch.setattr(module, "MANY", 2)
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    return page(fake.a_run()).figures


def test_processes_draw_what_this_one_would(many: list[Figure], monkeypatch: pytest.MonkeyPatch):
    here = {f"{figure.name}.png": figure.png() for figure in many} | {
        f"{figure.name}.svg": figure.svg() for figure in many
    }
    monkeypatch.setattr(Figure, "svg", lambda self: pytest.fail("drawn here"))
    with pictures(many) as drawn:
        assert drawn() == here


def test_what_a_process_does_not_draw_is_drawn_here(many: list[Figure], monkeypatch: pytest.MonkeyPatch):
    def dies(self, folder, timeout_s):
        (folder / f"{many[0].name}.png").write_bytes(b"half a picture")
        return -9

    monkeypatch.setattr(module.Worker, "run", dies)
    with pictures(many) as drawn:
        files = drawn()
    assert files[f"{many[0].name}.png"] == many[0].png() and files[f"{many[-1].name}.svg"] == many[-1].svg()


def test_a_report_of_many_charts_has_them_all(many: list[Figure], tmp_path):
    written = {path.name for path in write_report(fake.a_run(), tmp_path)}
    assert {f"{figure.name}{suffix}" for figure in many for suffix in (".png", ".svg")} < written
    assert {path.name for path in tmp_path.iterdir()} == written
