"""Charts as PNG and SVG files, drawn by processes beside this one, as nothing in a report takes longer.

They see no fonts but those that the drawing library brings: pictures are the same on every machine, and made several
times faster, as the library opens the file of an installed font for every letter anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import vl_convert

from kvbench.hardware.environment import usable_cores
from kvbench.hardware.worker import Worker, serve

if TYPE_CHECKING:
    from kvbench.report.figure import Figure

MOST_PROCESSES = 8

SCALE = 2
"""Pixels of a PNG a point."""


def svg(chart: str) -> str:
    """A chart, Vega-Lite as JSON, as vectors."""
    return vl_convert.vegalite_to_svg(chart)


def png(vectors: str) -> bytes:
    """The picture of an SVG."""
    return vl_convert.svg_to_png(vectors, scale=SCALE)


@contextmanager
def pictures(figures: Sequence[Figure]) -> Iterator[Callable[[], dict[str, bytes]]]:
    """A function that waits for the pictures of ``figures`` and returns them by file name; they are drawn meanwhile.

    What a process did not draw is drawn by the function, which fails if it cannot be drawn.
    """
    processes = min(usable_cores(), MOST_PROCESSES, len(figures))
    largest_first = sorted(figures, key=lambda figure: -len(figure.chart_json))
    with ThreadPoolExecutor(max(processes, 1)) as pool:
        drawing = [pool.submit(_drawn_apart, largest_first[index::processes]) for index in range(processes)]
        yield lambda: _files(figures, {name: data for each in drawing for name, data in each.result().items()})


def _drawn_apart(figures: Sequence[Figure]) -> dict[str, bytes]:
    """The pictures that a process drew; none if it failed, as a part of one may be there, or has no room for files."""
    with suppress(OSError), TemporaryDirectory(prefix="kvbench-charts-") as name:
        folder, no_fonts = Path(name) / "charts", Path(name) / "fonts"
        folder.mkdir()
        no_fonts.mkdir()
        fonts = Path(name) / "fonts.conf"  # the library reads fontconfig's files
        fonts.write_text(f"<?xml version='1.0'?><fontconfig><dir>{escape(str(no_fonts))}</dir></fontconfig>", "utf-8")
        for figure in figures:
            (folder / f"{figure.name}.json").write_text(figure.chart_json, "utf-8")
        worker = Worker("kvbench.report.pictures", {"FONTCONFIG_FILE": str(fonts)})
        try:
            failed = worker.run(folder, math.inf)
        finally:
            worker.stop()
        return {} if failed else {path.name: path.read_bytes() for path in folder.iterdir()}
    return {}


def _files(figures: Sequence[Figure], drawn: Mapping[str, bytes]) -> dict[str, bytes]:
    files = {}
    for figure in figures:
        for name, draw in ((f"{figure.name}.png", figure.png), (f"{figure.name}.svg", figure.svg)):
            files[name] = drawn[name] if name in drawn else draw()
    return files


def _draw(folder: Path) -> int:
    for path in sorted(folder.glob("*.json")):
        vectors = svg(path.read_text("utf-8"))
        path.with_suffix(".png").write_bytes(png(vectors))
        path.with_suffix(".svg").write_text(vectors, "utf-8")
    return 0


def main() -> None:
    """Draw the charts of every folder that is named on standard input."""
    serve(_draw)
