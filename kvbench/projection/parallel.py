"""A model spread over devices: which share of the weights each holds, and what they send each other in a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvbench.errors import KvbenchError
from kvbench.hardware.devices import WIDTH, Accelerator, Precision
from kvbench.projection.shape import Shape
from kvbench.projection.weights import Experts


@dataclass(frozen=True)
class Parallel:
    """``tensor`` devices share heads and MLPs; ``expert`` devices share routed experts, 1: they are cut like MLPs.

    With more expert than tensor parallelism, groups of ``tensor`` devices hold all but the experts once each and
    attend to rows of their own, as DeepSeek-V3 is served (arXiv 2412.19437, section 3.4).
    """

    tensor: int = 1
    expert: int = 1

    @property
    def devices(self) -> int:
        """All of them."""
        return max(self.tensor, self.expert)

    @property
    def groups(self) -> int:
        """Groups of ``tensor`` devices; rows are dealt out to them."""
        return self.devices // self.tensor

    def rows(self, batch: int) -> int:
        """Rows of the fullest group."""
        return math.ceil(batch / self.groups)

    def check(self, shape: Shape) -> None:
        """Raises KvbenchError where heads or experts do not divide evenly."""
        if self.tensor < 1 or self.expert < 1:
            raise KvbenchError(f"tp={self.tensor} and ep={self.expert} must be at least 1")
        if shape.heads % self.tensor:
            raise KvbenchError(f"tp={self.tensor} does not divide the {shape.heads} heads of {shape.name}")
        fewer, more = sorted((shape.kv_heads, self.tensor))
        if more % fewer:
            raise KvbenchError(f"tp={self.tensor} does not divide the {shape.kv_heads} KV heads of {shape.name}")
        experts = shape.weights.experts
        if self.expert > 1 and experts is None:
            raise KvbenchError(f"{shape.name} has no routed experts to spread over ep={self.expert} devices")
        if experts is not None and experts.count % self.expert:
            raise KvbenchError(f"ep={self.expert} does not divide the {experts.count} experts of {shape.name}")
        if self.expert > 1 and self.expert % self.tensor:
            raise KvbenchError(f"ep={self.expert} must be a multiple of tp={self.tensor}")


@dataclass(frozen=True)
class Share:
    """Parameters on one device: ``matrices`` are in the precision of the weights, ``wide`` ones stay in 16 bit or more
    (norms, routers, head and embedding), ``expert`` is its part of one layer's routed experts, all of them together.
    """

    matrices: float
    wide: float
    embedding: float
    experts: float
    expert_layers: int

    def size(self, precision: Precision) -> float:
        """Bytes."""
        wide = max(WIDTH[precision], WIDTH["bf16"])
        return WIDTH[precision] * (self.matrices + self.expert_layers * self.experts) + wide * (
            self.wide + self.embedding
        )


def share(shape: Shape, parallel: Parallel) -> Share:
    """What one device holds."""
    weights, tensor = shape.weights, parallel.tensor
    cut = weights.by_heads / tensor + weights.by_kv_heads / min(tensor, shape.kv_heads) + weights.mlps / tensor
    experts = weights.experts
    return Share(
        matrices=cut + weights.shared,
        wide=weights.norms + weights.routers + (weights.head or weights.embedding) / tensor,
        embedding=weights.embedding / tensor if weights.head else 0.0,
        experts=0.0 if experts is None else experts.count * experts.size / parallel.devices,
        expert_layers=0 if experts is None else experts.layers,
    )


def experts_hit(experts: Experts, batch: int) -> float:
    """Share of a layer's experts that at least one of ``batch`` tokens goes to, if all are equally likely.

    A token leaves one out with probability 1 − active / count: 1 − (1 − active / count)^batch are expected.
    """
    return 1 - (1 - experts.active / experts.count) ** batch


def reaches(experts: Experts, parts: int) -> float:
    """Probability that any expert of a token, all of them distinct, lies in a given one of ``parts`` equal parts."""
    outside = experts.count - experts.count // parts
    return 1 - math.prod((outside - drawn) / (experts.count - drawn) for drawn in range(experts.active))


def all_reduce_s(shape: Shape, parallel: Parallel, batch: int, width: int, device: Accelerator) -> float:
    """Seconds of a step's all-reduces of tensor parallelism: one after attention and one after each MLP that is cut.

    A ring sends 2 · (N − 1) / N of the data from each of N devices, which is optimal in bandwidth (Patarasuk and Yuan
    2009); latency is left out.
    """
    if parallel.tensor == 1:
        return 0.0
    experts = shape.weights.experts
    whole = experts.layers if experts is not None and parallel.expert > 1 else 0  # those exchange tokens instead
    data = parallel.rows(batch) * shape.hidden * width * (2 * shape.layers - whole)
    return 2 * (parallel.tensor - 1) / parallel.tensor * data / device.to_others(parallel.tensor)


def all_to_all_s(shape: Shape, parallel: Parallel, batch: int, width: int, dispatch: int, device: Accelerator) -> float:
    """Seconds in which tokens go to their experts' devices, in ``dispatch`` bytes a channel, and back in ``width``.

    A token goes once to every other node that it has experts on, over the network, and from there to every device, over
    the node's links, as in DeepSeek-V3 (arXiv 2412.19437, section 3.2.2), with uniform routing: both overlap, so the
    slower counts.
    """
    experts = shape.weights.experts
    if parallel.expert == 1 or experts is None:
        return 0.0
    tokens = parallel.rows(batch) / parallel.tensor  # a device sends its share of its group's rows
    data = tokens * shape.hidden * (dispatch + width) * experts.layers
    within = (parallel.expert - 1) * reaches(experts, parallel.expert) * data / device.link
    if parallel.expert <= device.node:
        return within
    nodes = math.ceil(parallel.expert / device.node)
    return max(within, (nodes - 1) * reaches(experts, nodes) * data / device.network)
