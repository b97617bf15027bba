"""Charts as files, drawn by processes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import fake_records as fake
import pytest

from kvbench.report import pictures as module
from kvbench.report.figure import Figure
from kvbench.report.html import write_report
from kvbench.report.page import page
from kvbench.report.pictures import pictures


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    return page(fake.a_run()).figures


def test_any_number_of_processes_draws_the_same(figures: list[Figure], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Figure, "svg", lambda self: pytest.fail("drawn here"))
    drawn = []
    for cores in (1, 2):
        monkeypatch.setattr(module, "usable_cores", lambda cores=cores: cores)
        with pictures(figures) as files:
            drawn.append(files())
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2 * len(figures) > 2
    for name, picture in drawn[0].items():
        assert picture.startswith(b"\x89PNG" if name.endswith(".png") else b"<svg")


def test_of_no_charts_there_are_no_pictures():
    with pictures([]) as files:
        assert files() == {}


def test_what_a_process_does_not_draw_is_drawn_here(figures: list[Figure], monkeypatch: pytest.MonkeyPatch):
    def dies(self, folder: Path, timeout_s: float) -> int:
        (folder / f"{figures[0].name}.png").write_bytes(b"half a picture")
        return -9

    monkeypatch.setattr(module.Worker, "run", dies)
    with pictures(figures) as files:
        drawn = files()
    assert drawn[f"{figures[0].name}.png"] == figures[0].png()
    assert drawn[f"{figures[-1].name}.svg"] == figures[-1].svg()


def test_installed_fonts_are_not_seen(figures: list[Figure], monkeypatch: pytest.MonkeyPatch):
    """Where Liberation was installed, a report of 2,000 records took twice as long."""
    told = []

    def looks(self, folder: Path, timeout_s: float) -> int:
        configuration = Path(self._added["FONTCONFIG_FILE"])
        text = configuration.read_text("utf-8")
        told.append([*Path(text.split("<dir>")[1].split("</dir>")[0]).iterdir()])
        return 1

    monkeypatch.setattr(module.Worker, "run", looks)
    with pictures(figures[:1]) as files:
        files()
    assert told == [[]], "one process, and no font in its only folder of fonts"


def test_without_room_for_temporary_files_pictures_are_drawn_here(figures: list[Figure], monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null/nowhere")
    with pictures(figures[:1]) as files:
        assert files()[f"{figures[0].name}.svg"] == figures[0].svg()


def test_a_report_has_a_picture_of_every_chart(figures: list[Figure], tmp_path: Path):
    written = {path.name for path in write_report(fake.a_run(), tmp_path)}
    assert {f"{figure.name}{suffix}" for figure in figures for suffix in (".png", ".svg")} < written
    assert {path.name for path in tmp_path.iterdir()} == written
