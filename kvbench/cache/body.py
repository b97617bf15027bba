"""The compressed middle of a layer's context: encoded entries that grow block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from kvbench.cache.buffers import GrowingTensor
from kvbench.codecs.quantizers.base import PAYLOAD, Stored


@dataclass
class Body:
    """``entries`` encoded tokens per KV head.

    ``slots`` (batch, kv heads, entries) int32 names the token of every entry; None when nothing was evicted, and the
    entries are the consecutive slots from the body's start. ``fitted`` is what the codec keeps per row (batch, …).
    """

    stored: dict[str, GrowingTensor] = field(default_factory=dict)
    slots: GrowingTensor | None = None
    entries: int = 0
    fitted: Stored = field(default_factory=dict)

    def append(self, stored: Stored, count: int, slots: Tensor | None) -> None:
        """Add ``count`` freshly encoded entries."""
        for name, tensor in stored.items():
            if name in self.stored:
                self.stored[name].append(tensor)
            else:
                self.stored[name] = GrowingTensor.adopt(tensor)
        if slots is not None:
            if self.slots is None:
                self.slots = GrowingTensor.adopt(slots)
            else:
                self.slots.append(slots)
        self.entries += count

    def view(self) -> Stored:
        """The stored tensors without their headroom."""
        return {name: buffer.view for name, buffer in self.stored.items()}

    def place(self) -> tuple[object, ...]:
        """Where the stored tensors lie, and how many entries: what is worked out for them holds until this changes."""
        buffers = (buffer.data for buffer in self.stored.values())
        return self.entries, *((data.data_ptr(), data.shape) for data in buffers)

    def truncate(self, entries: int) -> None:
        """Keep the first ``entries``, a multiple of the codec's block."""
        if entries == 0:
            self.stored.clear()
            self.fitted = {}
            self.slots = None
        else:
            for buffer in self.stored.values():
                buffer.truncate(entries * buffer.length // self.entries)
            if self.slots is not None:
                self.slots.truncate(entries)
        self.entries = entries

    def map_rows(self, function: Callable[[Tensor], Tensor]) -> None:
        """Select or repeat rows."""
        for buffer in self.buffers().values():
            buffer.map_rows(function)
        self.fitted = {name: function(tensor) for name, tensor in self.fitted.items()}

    def buffers(self) -> dict[str, GrowingTensor]:
        """Every buffer by name; ``slots`` among them."""
        return self.stored | ({} if self.slots is None else {"slots": self.slots})


def kind(name: str) -> str:
    """The kind of bytes a stored tensor holds: payload, scales or positions."""
    if name == "slots":
        return "positions"
    return "payload" if name.rpartition(".")[2] in PAYLOAD else "scales"
