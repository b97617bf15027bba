"""A chart as the page and the disk see it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import altair as alt

from kvbench.report.drawing import LIGHT
from kvbench.report.pictures import png, svg


@dataclass(frozen=True)
class Figure:
    """A chart, a file name for it (without suffix) and what it shows, in words."""

    name: str
    chart: alt.LayerChart
    description: str

    def specification(self) -> dict[str, Any]:
        """Plain Vega-Lite, without the address of its schema: nothing in it is to be fetched.

        Its parameters are the colours of light paper.
        """
        return self._plain

    @cached_property
    def _plain(self) -> dict[str, Any]:
        plain = self.chart.to_dict(validate=False)  # which takes long; tests hold charts to the schema
        plain.pop("$schema", None)
        # Given to the chart itself, Altair would copy them, and the chart, at every change.
        plain["params"] = [{"name": name, "value": value} for name, value in LIGHT.items()]
        return plain

    @cached_property
    def chart_json(self) -> str:
        """The specification as text."""
        return json.dumps(self._plain)

    def png(self) -> bytes:
        """The picture, two pixels a point."""
        return png(self._vectors)

    def svg(self) -> bytes:
        """The picture as vectors."""
        return self._vectors.encode()

    @cached_property
    def _vectors(self) -> str:
        return svg(self.chart_json)


LONGEST_NAME = 100
"""Characters of a file's name before what is added to it."""


def file_name(title: str, taken: Sequence[str]) -> str:
    """A name for ``title`` that is safe for any disk and not ``taken``."""
    slug = re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-.")[:LONGEST_NAME]
    candidates = (slug if index == 1 else f"{slug}-{index}" for index in count(1))
    return next(name for name in candidates if name not in taken)
