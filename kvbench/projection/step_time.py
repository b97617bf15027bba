"""The least time of a decode step: rooflines of three phases, and what devices send each other.

After Williams, Waterman and Patterson (2009), "Roofline": a phase that reads B bytes and does F operations takes at
least max(B / bandwidth, F / peak). Phases follow one another; communication is not hidden behind them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvbench.hardware.devices import WIDTH, Accelerator, Precision
from kvbench.projection.caches import CacheCost
from kvbench.projection.parallel import Parallel, all_reduce_s, all_to_all_s, experts_hit, share
from kvbench.projection.shape import Shape


@dataclass(frozen=True)
class Limits:
    """Shares of a device's peaks that are reached, of arithmetic, of memory bandwidth and of links: 1 is the limit."""

    compute: float = 1.0
    memory: float = 1.0
    link: float = 1.0


@dataclass(frozen=True)
class Setting:
    """A model on devices: weights in ``precision``, everything else in 16 bit, or 32 bit beside such weights."""

    shape: Shape
    parallel: Parallel
    precision: Precision
    device: Accelerator
    limits: Limits = Limits()

    @property
    def activations(self) -> Precision:
        """In which cache, attention and activations are: as wide as the weights, at least 16 bit."""
        return "fp32" if self.precision == "fp32" else "bf16"

    @property
    def width(self) -> int:
        """Bytes of a number of the cache."""
        return WIDTH[self.activations]

    @property
    def weight_bytes(self) -> float:
        """Of weights on one device."""
        return share(self.shape, self.parallel).size(self.precision)


@dataclass(frozen=True)
class Phase:
    """What one device ``reads`` and computes in a part of a step, and how long each takes at least."""

    name: str
    reads: str
    read_bytes: float
    operations: float
    memory_s: float
    compute_s: float

    @property
    def seconds(self) -> float:
        """The slower of both."""
        return max(self.memory_s, self.compute_s)

    @property
    def limit(self) -> str:
        """Which of both that is."""
        return "compute" if self.compute_s > self.memory_s else "memory"


@dataclass(frozen=True)
class Step:
    """A decode step of a batch: its phases, the seconds of its messages by name, and those of calls (``calls_s``)."""

    batch: int
    phases: tuple[Phase, ...]
    messages: dict[str, float]
    calls_s: float = 0.0

    @property
    def seconds(self) -> float:
        """All of them, one after another."""
        return sum(phase.seconds for phase in self.phases) + sum(self.messages.values()) + self.calls_s

    @property
    def tokens_per_s(self) -> float:
        """Of all rows together."""
        return self.batch / self.seconds

    @property
    def binds(self) -> tuple[str, str, float]:
        """What takes most of the step ("memory", "compute", "interconnect" or "calls"), of what, and its share."""
        parts = [
            (phase.limit, phase.reads if phase.limit == "memory" else phase.name, phase.seconds)
            for phase in self.phases
        ]
        parts += [("interconnect", name, seconds) for name, seconds in self.messages.items()]
        parts.append(("calls", "layers", self.calls_s))
        limit, name, seconds = max(parts, key=lambda part: part[2])
        return limit, name, seconds / self.seconds


def step(setting: Setting, cost: CacheCost, tokens: int, batch: int) -> Step:
    """The step that adds one token to each of ``batch`` rows of ``tokens``, spread over all devices."""
    phases = (_weights(setting, batch), _experts(setting, batch), _attention(setting, cost, tokens, batch))
    shape, parallel, width = setting.shape, setting.parallel, setting.width
    messages = {
        "all-reduce": all_reduce_s(shape, parallel, batch, width, setting.device),
        "all-to-all": all_to_all_s(shape, parallel, batch, width, WIDTH[setting.precision], setting.device),
    }
    used = {name: seconds / setting.limits.link for name, seconds in messages.items() if seconds}
    measured = setting.device.measured
    calls_s = 0.0 if measured is None else shape.layers * measured.layer_s(parallel.rows(batch))
    return Step(batch, tuple(phase for phase in phases if phase.read_bytes), used, calls_s)


def _weights(setting: Setting, batch: int) -> Phase:
    """All weights but routed experts: read once, multiplied with every row of the group."""
    part, rows = share(setting.shape, setting.parallel), setting.parallel.rows(batch)
    width, wide = WIDTH[setting.precision], setting.width
    peak, peak_wide = setting.device.peak(setting.precision), setting.device.peak(setting.activations)
    phase = _phase(
        setting,
        ("projections", "weights"),
        width * part.matrices + wide * part.wide,
        2 * rows * (part.matrices + part.wide),
        2 * rows * (part.matrices / peak + part.wide / peak_wide),
    )
    measured = setting.device.measured
    if measured is None:
        return phase
    rate = measured.weights(rows, setting.shape.hidden) * setting.limits.memory
    return replace(phase, memory_s=phase.read_bytes / rate)


def _experts(setting: Setting, batch: int) -> Phase:
    """Routed experts: those that any row of all groups goes to are read, each row is multiplied with its own."""
    experts, part = setting.shape.weights.experts, share(setting.shape, setting.parallel)
    if experts is None:
        return Phase("experts", "experts", 0.0, 0.0, 0.0, 0.0)
    read = WIDTH[setting.precision] * part.expert_layers * part.experts * experts_hit(experts, batch)
    operations = 2 * batch * part.expert_layers * part.experts * experts.active / experts.count
    names = "experts", "experts"
    return _phase(setting, names, read, operations, operations / setting.device.peak(setting.precision))


def _attention(setting: Setting, cost: CacheCost, tokens: int, batch: int) -> Phase:
    """The cache of a group's rows, and the bases that it is coded in."""
    rows = setting.parallel.rows(batch)
    operations = rows * cost.operations(tokens)
    read = cost.size(tokens, rows) + cost.basis_read
    names = "attention", "cache"
    return _phase(setting, names, read, operations, operations / setting.device.peak(setting.activations))


def _phase(setting: Setting, names: tuple[str, str], read: float, operations: float, at_peak_s: float) -> Phase:
    """``names`` are those of the phase and of what it reads."""
    limits, device = setting.limits, setting.device
    memory_s = read / (device.bandwidth * limits.memory)
    return Phase(*names, read, operations, memory_s, at_peak_s / limits.compute)
