"""Equal bytes: solving a method's free parameter so that its cache takes a given number of bits per element.

The free parameter is the setting named ``bits``, ``rank`` or ``budget`` of a spec's parts that is left open. Bits per
element are all predicted bytes of the cache at the workload's length, exact spans included. What a discrete setting
(2, 3 or 4 bits) leaves over is given to the exact recent window, so that every method really spends its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kvbench.cache.attach import Plan
from kvbench.cache.prediction import predict_bytes
from kvbench.calibration.statistics import Statistics
from kvbench.compressors import registry
from kvbench.compressors.compressor import Compressor
from kvbench.compressors.open_method import OpenMethod
from kvbench.compressors.part import Part
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import ModelGeometry

TOLERANCE = 0.02
"""Share of the target that the solved cache may be off."""

_SPANS = {"recent": 0, "block": 8}
"""Nothing but sinks stays exact unless the method states it: the window gets what is left over."""
_LOWEST = 1 / 64
_GRID = (1.0, 0.75, 0.55, 0.45, 0.35, 0.25, 0.18, 0.12, 0.06, _LOWEST)
"""Settings tried from the top, as shares of the knob's highest, until one stays within the target."""
_STEPS = 6
_KEPT = 12
"""Fitted plans kept at once; a plan's bases take megabytes."""
_CLOSE = 0.004
"""A size this share below the target is as good as on it."""


@dataclass(frozen=True)
class Solver:
    """Predicts bits per element of one model at ``tokens``, and turns a method into a spec of the wanted size.

    ``spans`` are keys of :class:`Spans` that every method gets alike unless it states them: ``{"exact": "float16"}``.
    """

    geometry: ModelGeometry
    statistics: Statistics | None
    tokens: int
    spans: Mapping[str, Any] = field(default_factory=dict)
    _plans: dict[tuple[Part, ...], Plan] = field(default_factory=dict)

    def bits(self, compressor: Compressor) -> float:
        """All predicted bits per K or V element right after a prefill of ``tokens``."""
        if compressor.parts not in self._plans:  # spans change nothing about the fit
            if len(self._plans) >= _KEPT:
                self._plans.clear()
            self._plans[compressor.parts] = compressor.fit(self.geometry, self.statistics)
        plan = replace(self._plans[compressor.parts], spans=compressor.spans)
        return 8 * predict_bytes(plan, self.geometry, self.tokens) / self.geometry.elements(self.tokens)

    def solve(self, method: str, target: float) -> Compressor:
        """``method`` (a name, or a spec whose knob is left open, as in ``pca+int:bits=4``) at ``target`` bits.

        Raises:
            KvbenchError: no setting reaches the target within 2 %; the message says the nearest.
        """
        nearest = self.nearest(method, target)
        reached = self.bits(nearest)
        if not reaches(reached, target):
            raise KvbenchError(
                f"{method} cannot take {target:g} bits per element at {self.tokens} tokens; the nearest is "
                f"{reached:.2f} with {nearest}"
            )
        return nearest

    def nearest(self, method: str, target: float) -> Compressor:
        """``method`` at ``target`` bits, or as close to them as it comes: its smallest setting where all are larger.

        Raises:
            KvbenchError: the method is no spec, or does not fit this model.
        """
        return self._fill_window(self._largest_below(OpenMethod.of(method), target), target)

    def _largest_below(self, method: OpenMethod, target: float) -> Compressor:
        """The knob's largest setting that stays within the target (its smallest one if none does)."""
        spans = {**_SPANS, **self.spans}
        if method.knob is None:
            return method.at(spans=spans)
        if method.choices:
            fitting = [method.at(choice, spans) for choice in method.choices]
            below = [compressor for compressor in fitting if self.bits(compressor) <= target * (1 + TOLERANCE / 2)]
            return below[-1] if below else min(fitting, key=self.bits)
        return self._bisect(lambda value: method.at(round(value, 4), spans), method.highest, target)

    def _bisect(self, make: Callable[[float], Compressor], highest: float, target: float) -> Compressor:
        """The largest number that stays within the target; bytes need not grow at the low end (eviction blocks)."""
        sizes: dict[float, float] = {}
        for value in (share * highest for share in _GRID):
            sizes[value] = self.bits(make(value))
            if sizes[value] <= target:
                break
        else:
            return make(min(sizes, key=lambda value: sizes[value]))
        low = high = value
        if len(sizes) > 1:
            high = list(sizes)[-2]
        for _ in range(_STEPS):
            if low == high or sizes[low] >= target * (1 - _CLOSE):
                break
            # Bytes are close to linear in the knob: aim a little below the target on the line through both bounds.
            share = (target * (1 - _CLOSE / 2) - sizes[low]) / (sizes[high] - sizes[low])
            middle = low + (high - low) * min(max(share, 0.05), 0.95)
            sizes[middle] = self.bits(make(middle))
            low, high = (middle, high) if sizes[middle] <= target else (low, middle)
        return make(low)

    def _fill_window(self, compressor: Compressor, target: float) -> Compressor:
        """The largest recent window that still fits the target."""
        low, high = 0, self.tokens
        if self.bits(compressor) > target:
            return compressor
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.bits(_widened(compressor, middle)) <= target else (low, middle)
        return _widened(compressor, low)


def reaches(bits: float, target: float) -> bool:
    """Whether ``bits`` per element count as the ``target``: within 2 %."""
    return abs(bits - target) <= TOLERANCE * target


def all_methods() -> Iterator[str]:
    """Every registered compressor as methods to solve: the settings that its paper recommends.

    Where a part names none, it is completed as peers are: latents with rotated 4-bit integers, kept tokens with 8 bits.
    """
    for name in registry.names():
        cls = registry.find(name)
        if cls.roles == ("baseline",) or name == "identity":
            continue
        yield from cls.published or (name + _completion(cls),)


def _completion(cls: type[Part]) -> str:
    """What a part needs behind it to code anything in few bits."""
    if "quantizer" in cls.roles:
        return ""
    return "+int:bits=8" if cls.roles == ("selector",) else "+hadamard+int:bits=4"


def _widened(compressor: Compressor, recent: int) -> Compressor:
    return replace(compressor, spans=replace(compressor.spans, recent=recent))
