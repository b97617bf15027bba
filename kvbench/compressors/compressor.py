"""A compressor: parts that compose, and the exact spans around what they compress.

``pca:rank=0.5+int:bits=4,group=64`` is two parts; ``sinks``, ``recent``, ``block`` and ``exact`` may stand in any of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kvbench.cache.attach import Plan
from kvbench.cache.spans import Spans
from kvbench.calibration.statistics import Statistics
from kvbench.compressors.composition import check_roles, joined, order, spans_of
from kvbench.compressors.draft import Draft
from kvbench.compressors.foreign import blaming, check_codecs
from kvbench.compressors.methods.saved import Saved
from kvbench.compressors.part import Part
from kvbench.compressors.spec import Spec, read
from kvbench.compressors.stock import StockPart
from kvbench.errors import KvbenchError, UnsupportedModelError
from kvbench.hooks.geometry import ModelGeometry


@dataclass(frozen=True)
class Compressor:
    """A parsed spec. ``str(compressor)`` is the canonical spec and parses back to an equal compressor."""

    parts: tuple[Part, ...]
    spans: Spans = field(default_factory=Spans)

    @property
    def baseline(self) -> str | None:
        """The name of a baseline ("none", "hf", …), else None."""
        return self.parts[0].name if self.parts[0].roles == ("baseline",) else None

    @property
    def stock(self) -> StockPart | None:
        """The baseline that brings transformers' own cache, to be run with kvbench detached; else None."""
        return self.parts[0] if isinstance(self.parts[0], StockPart) else None

    @property
    def saved(self) -> Saved | None:
        """The plan that was fitted before and is only loaded; else None."""
        return self.parts[0] if isinstance(self.parts[0], Saved) else None

    @property
    def needs_calibration(self) -> bool:
        """Whether fitting needs statistics."""
        return any(part.needs_calibration for part in self.parts)

    def __str__(self) -> str:
        return joined([str(part) for part in self.parts], self.spans, self.parts[0].spans)

    def fit(self, geometry: ModelGeometry, statistics: Statistics | Callable[[], Statistics] | None = None) -> Plan:
        """The plan for a model of this ``geometry``: bases, bit widths, codecs.

        In closed form from ``statistics``, or from what they return when called; where nothing needs calibration they
        are not looked at. Only ``allocate=sensitivity`` measures, by forward passes.

        Raises:
            KvbenchError: statistics are missing or belong to another geometry, or a rank or width does not fit.
            UnsupportedModelError: no layer of the model is compressed.
            PluginError: a part of another package fails, or its codecs give back other shapes than they got.
        """
        if self.baseline:
            return Plan({}, self.spans)
        if not geometry.compressible:
            raise UnsupportedModelError(
                f"{self} has nothing to compress: all {len(geometry.layers)} attention layers of this model keep a "
                "sliding window, which stays exact"
            )
        draft = Draft(geometry, self._statistics(geometry, statistics))
        for part in self.parts:
            with blaming(type(part), "does not fit"):
                part.apply(draft)
        plan = draft.finish(self.spans)
        check_codecs(self.parts, geometry, plan.layers)
        return plan

    def _statistics(
        self, geometry: ModelGeometry, given: Statistics | Callable[[], Statistics] | None
    ) -> Statistics | None:
        if not self.needs_calibration:
            return None
        if given is None:
            raise KvbenchError(f"{self}: needs calibration; run `kvbench calibrate` or pass statistics")
        statistics = given if isinstance(given, Statistics) else given()
        _check_statistics(geometry, statistics)
        return statistics


def parse(spec: str) -> Compressor:
    """Parse a spec string.

    >>> str(parse("kvtc:recent=0,bits=3"))
    'kvtc:bits=3,recent=0'

    Raises:
        KvbenchError: unknown name or key (with the nearest match), a bad value, or parts that do not compose.
    """
    return assemble(read(spec))


def assemble(spec: Spec) -> Compressor:
    """The compressor of a spec that was read.

    Raises:
        KvbenchError: as :func:`parse`, but for names.
    """
    parts: list[Part] = []
    for written in spec.parts:
        with blaming(written.cls, f"refuses {written.text!r}"):
            parts.append(written.cls.parse(written.settings))
    check_roles([part.outline() for part in parts], spec.spans)
    parts.sort(key=lambda part: order(part.roles))
    return Compressor(tuple(parts), spans_of(spec.text, parts[0].spans, spec.spans))


def _check_statistics(geometry: ModelGeometry, statistics: Statistics) -> None:
    for layer in geometry.compressible:
        known = statistics.layers.get(layer.layer)
        if known is None or len(known.key_sum) != layer.kv_heads * layer.head_dim:
            raise KvbenchError(
                f"the statistics of {statistics.model or 'another model'} do not fit this model at layer "
                f"{layer.layer}; calibrate this model"
            )
