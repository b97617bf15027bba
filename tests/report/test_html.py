"""The HTML report: whole, offline, safe."""

from __future__ import annotations

import base64
import gzip
import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import altair as alt
import fake_records as fake
import pytest

from kvbench.errors import KvbenchError
from kvbench.report import packing
from kvbench.report.columns import DETAILS
from kvbench.report.drawing import LIGHT
from kvbench.report.html import write_report
from kvbench.report.page import page
from kvbench.report.reproduce import recipes
from kvbench.runs.records import Record
from kvbench.runs.store import StoreStatus
from kvbench.runs.suites import expand, load_suite, parse_suite

SCRIPT = "<script>alert(1)</script>"
GZIPPED = re.compile(r'<script type="application/gzip" ([^>]+)>([^<]+)</script>')


class Outline(HTMLParser):
    """The page's elements, its text outside scripts, and whether every element is closed."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], str]:
    """The files and the page of a whole run."""
    files = write_report(fake.a_run(), tmp_path_factory.mktemp("report") / "new")
    return files, files[0].read_text("utf-8")


@pytest.fixture(scope="module")
def outline(run: tuple[list[Path], str]) -> Outline:
    return Outline(run[1])


def write(records: list[Record], folder: Path, status: StoreStatus | None = None) -> str:
    return write_report(records, folder, status)[0].read_text("utf-8")


def test_the_page_and_its_charts_are_written(run):
    files, _ = run
    assert files[0].name == "report.html"
    pictures = [file.stem for file in files if file.suffix == ".png"]
    assert len(pictures) == 6
    assert sorted(pictures) == sorted(file.stem for file in files if file.suffix == ".svg")
    assert sorted(files[0].parent.iterdir()) == sorted(files)  # no temporary file is left


def test_the_page_needs_nothing_from_anywhere(run, outline):
    _, text = run
    assert not outline.open
    assert not any("src" in attributes for _, attributes in outline.elements)
    assert not outline.all("link") and not outline.all("iframe") and not outline.all("base")
    assert all(link["href"].startswith(("#", "data:")) for link in outline.all("a"))
    styles = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert styles and "url(" not in styles[0] and "@import" not in styles[0]
    policies = [meta["content"] for meta in outline.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies and "default-src 'none'" in policies[0] and "http" not in policies[0]
    assert "vegaEmbed" in text


def test_all_rows_numbers_and_definitions_are_there(outline):
    tables = outline.all("table")
    assert len(tables) == 4 + 3 + 1 + 2 + 3
    assert all(cell.get("scope") in ("row", "col") for cell in outline.all("th"))
    text = " ".join(outline.text.split())
    for outcome in fake.OUTCOMES:
        assert outcome.spec in text
    for part, columns in DETAILS.items():
        for column in columns if any(getattr(record, part) for record in fake.a_run()) else ():
            assert column.description in text
    for phrase in ("against 16-bit K and V", "50 ok", "1 failed", "1 out of memory", "cannot allocate 1 bit", "faster"):
        assert phrase in text


def test_charts_have_words_for_those_who_cannot_see_them(outline):
    described = [figure["aria-label"] for figure in outline.all("figure")]
    assert len(described) == 6
    assert all("Pareto frontier" in text for text in described)


def test_charts_travel_inside_the_page(run):
    _, text = run
    specifications = re.findall(r'<script type="application/json" data-chart="([^"]+)">(.*?)</script>', text, re.S)
    assert len(specifications) == 6
    for _, content in specifications:
        assert json.loads(content)["layer"]


def test_charts_fulfil_their_schema():
    for figure in page(fake.a_run()).figures:
        figure.chart.to_dict(validate=True)
        alt.LayerChart.from_dict(figure.specification(), validate=True)
        assert {param["name"]: param["value"] for param in figure.specification()["params"]} == LIGHT


def test_long_parts_of_many_trials_are_packed_and_nothing_is_lost(tmp_path, monkeypatch):
    text = write(fake.a_run(), tmp_path / "plain")
    monkeypatch.setattr(packing, "MANY", 1)
    small = write(fake.a_run(), tmp_path / "packed")
    assert len(small) < len(text) and not Outline(small).open
    parts = {name: unpacked(data) for name, data in re.findall(GZIPPED, small)}
    assert len(re.findall("data-chart=", small)) == len(re.findall("data-chart=", text))
    charts = [json.loads(part) for name, part in parts.items() if name.startswith("data-chart")]
    assert charts and all(chart["layer"] for chart in charts)
    folded = [unpacked(data) for name, data in re.findall(GZIPPED, small) if name == "data-part"]
    assert folded and all(part in text for part in folded)
    assert write(fake.a_run(), tmp_path / "again") == small


def unpacked(data: str) -> str:
    return gzip.decompress(base64.b64decode(data)).decode()


def test_only_what_was_measured_is_explained(tmp_path):
    text = write([fake.ok(fake.OUTCOMES[4], fake.OTHER_DOMAIN)], tmp_path)
    assert "KL(uncompressed" in text and "Speed-ups are paired" not in text and "Bytes are real" not in text


def test_what_records_say_is_data_never_markup(tmp_path):
    records = [
        fake.ok(fake.Outcome(SCRIPT, 5.0, 0.1, 0.9, 1.2), model=SCRIPT),
        fake.broken(f"int:x={SCRIPT}", message=f"</pre>{SCRIPT}", kind=SCRIPT, model=SCRIPT),
    ]
    text = write(records, tmp_path)
    assert SCRIPT not in text
    assert "</pre><script>" not in text
    assert SCRIPT in Outline(text).text


def test_numbers_can_be_sorted_and_failures_cannot(run):
    _, text = run
    assert re.search(r"<td>0\.017", text), "what is shown is what is sorted by"
    assert re.search(r'<td data-sort="0">≤ noise', text) and re.search(r'<td data-sort="0\.929">92\.9%', text)
    assert '<td class="reason"' in text
    assert "aria-sort" in text


def test_provenance_and_traceback_are_there(outline):
    for phrase in ("AMD EPYC 7B13, 2 cores, 2 threads used", "torch 2.13.0", "e096c0900000", "8.0 GiB", "Traceback"):
        assert phrase in outline.text


def test_two_environments_are_two_drawers(tmp_path):
    other = fake.MACHINE.model_copy(
        update={"device_name": "NVIDIA H100", "device_memory": 80 << 30, "git_sha": None, "load_average": None}
    )
    records = [fake.ok(fake.OUTCOMES[3]), fake.ok(fake.OUTCOMES[4]).model_copy(update={"provenance": other})]
    text = Outline(write(records, tmp_path)).text
    assert "NVIDIA H100, 80.0 GiB" in text and "commit unknown" in text and "none used" in text


def test_missing_trials_are_told(tmp_path):
    text = write(fake.a_run()[:3], tmp_path, StoreStatus(expected=9, done=3, failed=0, missing=6, torn=0))
    assert "6 of 9 expected trials have no record yet" in text


@pytest.mark.parametrize(
    "records",
    [
        [],
        [fake.broken("int:bits=4", "timeout")],
        [fake.ok(fake.OUTCOMES[0])],
        [fake.ok(fake.OUTCOMES[4], fake.OTHER_DOMAIN)],
        [fake.ok(fake.OUTCOMES[4], fake.BATCH), fake.broken("x", "killed", message="\nboth\n")],
    ],
    ids=["nothing", "only a failure", "only a baseline", "only quality", "no quality"],
)
def test_pages_of_little_are_pages_too(records, tmp_path):
    outline = Outline(write(records, tmp_path))
    assert not outline.open
    assert outline.all("h1")
    assert ("nothing to show yet" in outline.text) == (not records)


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(KvbenchError, match="cannot write the report to"):
        write_report([], blocked)


def test_the_suite_in_the_page_runs_the_same_trials(run, outline):
    records = fake.a_run()
    (recipe,) = recipes(records)
    suite = parse_suite(recipe.suite, recipe.file)
    measured = {(record.trial.model, record.trial.compressor, record.trial.workload) for record in records}
    assert measured <= set(expand(suite))
    assert {(model, workload) for model, _, workload in expand(suite)} == {
        (model, workload) for model, _, workload in measured
    }
    assert "kvbench run --suite suite.toml --device cpu" in outline.text
    (link,) = [link for link in outline.all("a") if link.get("download") == "suite.toml"]
    assert tomllib.loads(unquote(link["href"].partition(",")[2]))["dtype"] == "float32"


def test_settings_that_do_not_fit_one_suite_make_several():
    record = fake.ok(fake.OUTCOMES[3])
    halved = record.trial.model_copy(update={"dtype": "bfloat16"})
    renamed = record.trial.model_copy(update={"workload": fake.BATCH.model_copy(update={"name": "essays-2k"})})
    records = [record, *(record.model_copy(update={"trial": trial}) for trial in (halved, renamed))]
    suites = [parse_suite(recipe.suite, recipe.file) for recipe in recipes(records)]
    assert [suite.dtype for suite in suites] == ["float32", "bfloat16", "float32"]
    assert suites[0].workload[0].quality and not suites[2].workload[0].quality


def test_every_row_has_the_command_that_measures_it_alone(outline):
    for compressor in ("kvtc:bits=3", "pca:rank=0.5+int:bits=4"):
        assert f" --compressor {compressor} " in outline.text
    assert f"kvbench run --suite suite.toml --model {fake.SMOLLM2} --compressor " in outline.text


def test_a_built_in_suite_needs_no_file():
    suite = load_suite("frontier")
    record = fake.ok(fake.OUTCOMES[10], suite.workload[0].plain())
    ((spec, command),) = recipes([record])[0].rows
    assert spec == "kvtc:bits=3"
    assert command == "kvbench run --suite frontier --compressor kvtc:bits=3 --threads 2"
    other = record.trial.model_copy(update={"device": "cuda", "attention": "reference+reconstruct", "dtype": "float16"})
    assert (
        recipes([record.model_copy(update={"trial": other})])[0]
        .rows[0][1]
        .endswith("--dtype float16 --device cuda --attention reference --read reconstruct --threads 2")
    )
