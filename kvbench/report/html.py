"""A run written out for readers: one HTML file that needs nothing else, charts as pictures, the table as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

from kvbench.errors import KvbenchError
from kvbench.report.answers import AnswerTable
from kvbench.report.columns import Cell
from kvbench.report.drawing import DARK
from kvbench.report.figure import Figure
from kvbench.report.packing import data_script, folded, short_part
from kvbench.report.page import Page, page
from kvbench.report.pictures import pictures
from kvbench.report.tables import markdown
from kvbench.runs.records import Record
from kvbench.runs.store import StoreStatus
from kvbench.storage.files import replace_file

REPORT = "report.html"
TABLE = "table.md"

DIGITS = 6
"""Of numbers in charts and of those that tables sort by: more than a screen has pixels."""

AS_SHOWN = 0.05
"""Share by which a number in a table may be rounded and still be what the table sorts by."""


def write_report(records: Sequence[Record], folder: Path | str, status: StoreStatus | None = None) -> list[Path]:
    """Write ``report.html``, ``table.md`` and each chart as PNG and SVG into ``folder``, made if need be; the paths.

    The page holds its charts, so the pictures are for papers and slides. ``status`` lets the page say that trials are
    missing. Files are replaced whole. Raises KvbenchError if the folder cannot be written.
    """
    content, target = page(records, status), Path(folder)
    with pictures(content.figures) as drawn:
        files = {REPORT: _render(content).encode(), TABLE: markdown(records).encode(), **drawn()}
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            replace_file(target / name, data)
    except OSError as error:
        raise KvbenchError(f"cannot write the report to {target} ({error.strerror}); choose another folder") from error
    return [target / name for name in files]


def _render(content: Page) -> str:
    """Everything from records is escaped; only the chart library goes in as it is."""
    template = templates().get_template("report.html.j2")
    library = _chart_library() if content.figures else ""
    short = short_part(sum(count for _, count, _ in content.counts))
    return template.render(page=content, chart_library=library, dark=DARK, short=short)


@cache
def templates() -> Environment:
    """The templates of this folder, which escape everything."""
    environment = Environment(
        loader=PackageLoader("kvbench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "chart_script": _chart_script,
        "answers_script": _answers_script,
        "folded": folded,
        "breakable": _breakable,
        "sort_key": _sort_key,
    }
    return environment


def _chart_script(figure: Figure, short: int) -> Markup:
    """The chart, as short as it can be written."""
    return data_script(f'data-chart="{escape(figure.name)}"', _json(_rounded(figure.specification())), short)


def _answers_script(answers: AnswerTable, short: int) -> Markup:
    return data_script("data-answers", _json(answers.packable), short)


def _json(value: Any) -> Markup:
    return htmlsafe_json_dumps(value, separators=(",", ":"))


def _breakable(spec: str) -> Markup:
    """Long specs break after commas and between parts."""
    return Markup(str(escape(spec)).replace(",", ",<wbr>").replace("+", "+<wbr>"))


def _rounded(value: Any) -> Any:
    """All numbers within lists and tables with :data:`DIGITS` digits."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _sort_key(cell: Cell) -> str:
    """The number that a table sorts by; empty for a word, and where the cell shows that number."""
    if cell.sort is None:
        return ""
    try:
        as_shown = math.isclose(float(cell.text), cell.sort, rel_tol=AS_SHOWN)
    except ValueError:
        as_shown = False
    return "" if as_shown else f"{cell.sort:.{DIGITS}g}"


@cache
def _chart_library() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script. No text in it may end the script element."""
    script = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub omits the default
    return Markup(script.replace("</script", "<\\/script"))
