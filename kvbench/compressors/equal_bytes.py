"""Equal bytes: solving a method's free parameter so that its cache takes a given number of bits per element.

The free parameter is the setting named ``bits``, ``rank`` or ``budget`` of a spec's parts that is left open. Bits per
element are all predicted bytes of the cache at the workload's length, exact spans included. What a discrete setting
(2, 3 or 4 bits) leaves over is given to the exact recent window, so that every method really spends its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import get_type_hints

from kvbench.cache.attach import Plan
from kvbench.cache.prediction import predict_bytes
from kvbench.cache.spans import Spans
from kvbench.calibration.statistics import Statistics
from kvbench.compressors import registry
from kvbench.compressors.compressor import Compressor, parse
from kvbench.compressors.part import Part
from kvbench.errors import KvbenchError
from kvbench.models.geometry import ModelGeometry

KNOBS = ("bits", "rank", "budget", "latent")
TOLERANCE = 0.02
"""Share of the target that the solved cache may be off."""

_BODY = ",recent=0,block=8"
HIGHEST = {"bits": 8.0}
"""The largest value of a knob that is not a share of something."""
_LOWEST = 1 / 64
_GRID = (1.0, 0.75, 0.55, 0.45, 0.35, 0.25, 0.18, 0.12, 0.06, _LOWEST)
"""Settings tried from the top, as shares of the knob's highest, until one stays within the target."""
_STEPS = 6
_KEPT = 12
"""Fitted plans held at once; a plan's bases take megabytes."""
_CLOSE = 0.004
"""A size this share below the target is as good as on it."""
_COMPLETED = {"cast": "cast:to=fp8", "hadamard": "hadamard+int"}
"""Methods that need a word more than their name before their knob can be solved."""


@dataclass(frozen=True)
class Solver:
    """Predicts bits per element of one model at ``tokens``, and turns a method into a spec of the wanted size."""

    geometry: ModelGeometry
    statistics: Statistics | None
    tokens: int
    _plans: dict[tuple[Part, ...], Plan] = field(default_factory=dict)

    def bits(self, compressor: Compressor) -> float:
        """All predicted bits per K or V element right after a prefill of ``tokens``."""
        if compressor.parts not in self._plans:  # spans change nothing about the fit
            if len(self._plans) >= _KEPT:
                self._plans.clear()
            statistics = self.statistics if compressor.needs_calibration else None
            self._plans[compressor.parts] = compressor.fit(self.geometry, statistics)
        plan = replace(self._plans[compressor.parts], spans=compressor.spans)
        return 8 * predict_bytes(plan, self.geometry, self.tokens) / self.geometry.elements(self.tokens)

    def solve(self, method: str, target: float) -> Compressor:
        """``method`` (a name, or a spec whose knob is left open, as in ``pca+int:bits=4``) at ``target`` bits.

        Raises:
            KvbenchError: no setting reaches the target within 2 %; the message says the nearest.
        """
        best = self._largest_below(method, target)
        found = self._fill_window(best, target)
        reached = self.bits(found)
        if abs(reached - target) > TOLERANCE * target:
            raise KvbenchError(
                f"{method} cannot take {target:g} bits per element at {self.tokens} tokens; the nearest is "
                f"{reached:.2f} with {found}"
            )
        return found

    def _largest_below(self, method: str, target: float) -> Compressor:
        """The knob's largest setting that stays within the target (its smallest one if none does)."""
        knob = open_knob(method)
        if knob is None:
            return parse(_with(method, None, None))
        name, choices = knob
        if choices:
            fitting = [parse(_with(method, name, choice)) for choice in choices]
            below = [own for own in fitting if self.bits(own) <= target * (1 + TOLERANCE / 2)]
            return below[-1] if below else fitting[0]
        return self._bisect(lambda value: parse(_with(method, name, round(value, 4))), name, target)

    def _bisect(self, make: Callable[[float], Compressor], name: str, target: float) -> Compressor:
        """The largest number that stays within the target; bytes need not grow at the low end (eviction blocks)."""
        sizes: dict[float, float] = {}
        for value in (share * HIGHEST.get(name, 1.0) for share in _GRID):
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
            # Bytes are close to linear in the knob: aim a little below the target on the line through both ends.
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


def open_knob(method: str) -> tuple[str, tuple[int, ...]] | None:
    """(name, choices) of the first knob that ``method`` leaves open; no choices: any number. None: nothing is open."""
    for text in method.split("+"):
        name, _, given = text.partition(":")
        cls = registry.find(name)
        hints = get_type_hints(cls)
        for item in fields(cls):
            if item.name in KNOBS and f"{item.name}=" not in given and not (item.default is None and _complete(text)):
                return item.name, _choices(cls, item.name) if hints[item.name] is int else ()
    return None


def _complete(text: str) -> bool:
    """Whether a part says enough without the settings it leaves out: ``pca:energy=0.9`` needs no rank."""
    try:
        return bool(parse(text))
    except KvbenchError:
        return False


def all_methods() -> Iterator[str]:
    """Every registered compressor as a method to solve.

    Transforms and selectors alone keep 16 or 32 bits per value; they are completed as their papers do, with integers.
    """
    for name in registry.names():
        cls = registry.find(name)
        if cls.roles == ("baseline",) or name == "identity":
            continue
        if name in _COMPLETED:
            yield _COMPLETED[name]
        elif "quantizer" in cls.roles:
            yield name
        else:
            yield f"{name}+int:bits={4 if 'transform' in cls.roles else 8}"


def _choices(cls: type[Part], name: str) -> tuple[int, ...]:
    """The whole numbers up to 16 that the part accepts."""

    def accepted(value: int) -> bool:
        try:
            cls(**{name: value})
        except (KvbenchError, TypeError):
            return False
        return True

    return tuple(value for value in range(1, 17) if accepted(value))


def turned(method: str, name: str, value: float) -> str:
    """The spec of ``method`` with its open knob ``name`` set to ``value``."""
    parts = method.split("+")
    place = next(index for index, text in enumerate(parts) if _opens(text, name))
    parts[place] += ("," if ":" in parts[place] else ":") + f"{name}={value:g}"
    return "+".join(parts)


def _with(method: str, name: str | None, value: float | None) -> str:
    """The spec of ``method`` with its open knob set, and no window unless the method states one."""
    spec = method if name is None or value is None else turned(method, name, value)
    if "recent=" in method:
        return spec
    first, *rest = spec.split("+")
    return "+".join([first + (_BODY if ":" in first else ":" + _BODY.lstrip(",")), *rest])


def _opens(text: str, name: str) -> bool:
    part, _, given = text.partition(":")
    return name in {item.name for item in fields(registry.find(part))} and f"{name}=" not in given


def _widened(compressor: Compressor, recent: int) -> Compressor:
    spans = compressor.spans
    return replace(compressor, spans=Spans(spans.sinks, recent, spans.block))
