"""What ``generate`` leaves behind in Qwen's vision-language models and the like: an offset of positions per row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

NAME = "rope_deltas"


@contextmanager
def without_rope_deltas(model: nn.Module) -> Iterator[None]:
    """While open, ``model`` counts positions as if nothing had been generated before; afterwards all is as it was.

    The offsets of a batch are kept in the model itself, not in its cache, and decoding adds them to the positions of
    whatever comes next: other texts stand elsewhere, and a batch of another size does not fit.
    """
    left = {module: deltas for module in model.modules() if (deltas := vars(module).get(NAME)) is not None}
    for module in left:
        setattr(module, NAME, None)
    try:
        yield
    finally:
        for module, deltas in left.items():
            setattr(module, NAME, deltas)
