"""What a fit aims at, and for which sizes a suite is solved: read without torch, so that a slip is told at once."""

from __future__ import annotations

import math
import re
from typing import Literal

from kvbench.errors import KvbenchError
from kvbench.storage.frozen import Frozen
from kvbench.storage.units import UNITS

_TARGET = re.compile(r"\s*(bits|bytes|kld)\s*=\s*([0-9.eE+-]+)\s*([A-Za-z]*)\s*")


class Target(Frozen):
    """What the compressor shall take (bits per element, bytes of one row's cache) or cost (nats per token)."""

    quantity: Literal["bits", "bytes", "kld"]
    value: float

    def __str__(self) -> str:
        return f"{self.quantity}={self.value:.10g}"


def parse_target(text: str) -> Target:
    """``bits=3``, ``kld=0.02`` or ``bytes=3MiB``.

    Raises:
        KvbenchError: anything else.
    """
    match = _TARGET.fullmatch(text)
    try:
        if match is None or (match[3] if match[1] != "bytes" else match[3] not in UNITS):
            raise ValueError(text)
        value = float(match[2]) * (UNITS[match[3]] if match[1] == "bytes" else 1)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(text)
    except ValueError:
        raise KvbenchError(
            f"cannot read --target {text!r}; write bits=3 (per K or V element, all bytes), bytes=3MiB (of the cache) "
            "or kld=0.02 (nats per token)"
        ) from None
    return Target(quantity=match[1], value=value)  # type: ignore[index,arg-type]


def bit_targets(at: str) -> list[float]:
    """Bits per element out of ``bits=2,3,4``, each once.

    Raises:
        KvbenchError: anything else.
    """
    name, equals, values = at.partition("=")
    try:
        targets = [float(value) for value in values.split(",")]
    except ValueError:
        targets = []
    if name.strip() != "bits" or not equals or not targets or any(not 0 < target <= 64 for target in targets):
        raise KvbenchError(f"cannot read --at {at!r}; write bits=3 or bits=2,3,4 (bits per K or V element, all bytes)")
    return list(dict.fromkeys(targets))
