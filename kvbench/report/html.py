"""A run written out for readers: one HTML file that needs nothing else, charts as pictures, the table as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kvbench.errors import KvbenchError
from kvbench.report.drawing import DARK
from kvbench.report.page import Page, page
from kvbench.report.tables import markdown
from kvbench.runs.records import Record
from kvbench.runs.store import StoreStatus
from kvbench.storage.files import replace_file

REPORT = "report.html"
TABLE = "table.md"


def write_report(records: Sequence[Record], folder: Path | str, status: StoreStatus | None = None) -> list[Path]:
    """Write ``report.html``, ``table.md`` and each chart as PNG and SVG into ``folder``, made if need be; the paths.

    The page holds its charts, so the pictures are for papers and slides. ``status`` lets the page say that trials are
    missing. Files are replaced whole. Raises KvbenchError if the folder cannot be written.
    """
    content = page(records, status)
    files = {REPORT: _render(content).encode(), TABLE: markdown(records).encode()}
    for figure in content.figures:
        files[f"{figure.name}.png"] = figure.png()
        files[f"{figure.name}.svg"] = figure.svg().encode()
    target = Path(folder)
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
    return template.render(page=content, chart_library=_chart_library() if content.figures else "", dark=DARK)


@cache
def templates() -> Environment:
    """The templates of this folder, which escape everything."""
    return Environment(
        loader=PackageLoader("kvbench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _chart_library() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script. No text in it may end the script element."""
    script = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub omits the default
    return Markup(script.replace("</script", "<\\/script"))
