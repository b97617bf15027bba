"""Entropy coding: one uniform step for every component, and only as many bits as an index is surprising.

Latents come in coordinates where squared error costs the same everywhere, so the step is common to all components of
all layers (reverse water-filling at one slope), and a component's standard deviation in steps picks its static table.
A block of 32 tokens of one layer and side takes a fixed number of bytes: it gets the finest step that fits, stored
beside it. Bytes are thus known beforehand, and any span of blocks decodes alone.

Trellis and coder are numba kernels (:mod:`kvbench.codecs.quantizers.rans`), imported on first use. They run on the CPU:
for a model on an accelerator, codes are moved there and latents back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvbench.codecs.quantizers.base import Cost, Stored
from kvbench.errors import KvbenchError

if TYPE_CHECKING:
    from kvbench.codecs.quantizers.entropy_tables import EntropyTables
    from kvbench.codecs.quantizers.rans import StreamLayout

BLOCK = 32
EXPONENT_BYTES = 2
FLOOR = 2**-2.5
"""Components of less standard deviation, in steps, are dropped."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EntropyQuantizer:
    """``deviation`` (rank,) fp64 of a single head group's components, coded in ``size`` bytes per block."""

    deviation: Tensor
    step: float
    size: int
    block: int = BLOCK

    def __post_init__(self) -> None:
        least = 2 * tables().least_words(self.layout)
        if self.size % 2 or self.size < least:
            raise ValueError(f"a block takes an even number of bytes, at least {least} here; got {self.size}")

    @property
    def rank(self) -> int:
        """Components."""
        return len(self.deviation)

    @cached_property
    def layout(self) -> StreamLayout:
        """How each component is coded."""
        return tables().layout(self.deviation.numpy() / self.step)

    def scaled(self, factor: float) -> EntropyQuantizer:
        """The same codes for latents times ``factor``."""
        return replace(self, deviation=self.deviation * factor, step=self.step * factor)

    def encode(self, latents: Tensor) -> Stored:
        """Latents (batch, 1, tokens, rank) → codes (batch, 1, blocks, size) and exponents (batch, 1, blocks)."""
        from kvbench.codecs.quantizers.rate_control import compress

        batch, _, tokens, rank = latents.shape
        steps = (latents.detach().cpu().double() / self.step).float()
        blocks = np.nan_to_num(steps.contiguous().numpy()).reshape(-1, BLOCK, rank)
        words, exponents = np.empty((len(blocks), self.size // 2), np.uint16), np.empty(len(blocks), np.int16)
        layout, shared = self.layout, tables().tables
        _spread(len(blocks), lambda span: compress(blocks[span], layout, shared, words[span], exponents[span]))
        shape = (batch, 1, tokens // BLOCK)
        stored = {"codes": torch.from_numpy(words.view(np.uint8)), "exponents": torch.from_numpy(exponents)}
        return {name: tensor.view(*shape, *tensor.shape[1:]).to(latents.device) for name, tensor in stored.items()}

    def decode(self, stored: Stored) -> Tensor:
        """Codes and exponents → latents (batch, 1, tokens, rank) in fp32."""
        from kvbench.codecs.quantizers.rans import decode
        from kvbench.codecs.quantizers.rate_control import COARSEST, FINENESS

        batch, _, count, size = stored["codes"].shape
        words = stored["codes"].cpu().contiguous().view(-1, size).numpy().view(np.uint16)
        exponents = stored["exponents"].cpu().flatten().double().clamp(-COARSEST, COARSEST)
        steps = (self.step * torch.exp2(exponents / FINENESS)).float().numpy()
        out = np.empty((len(words), BLOCK, self.rank), dtype=np.float32)
        layout, shared = self.layout, tables().tables
        _spread(len(words), lambda span: decode(words[span], steps[span], layout, shared, out[span]))
        return torch.from_numpy(out).view(batch, 1, count * BLOCK, self.rank).to(stored["codes"].device)

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """The fixed size of a block, and its exponent."""
        return Cost(groups * self.size * 8 / BLOCK, groups * EXPONENT_BYTES * 8 / BLOCK)

    def tensors(self) -> list[Tensor]:
        """Rows and shifts of the components, and the tables that all quantizers share."""
        return [torch.from_numpy(array) for array in (*self.layout, *tables().tables)]


def entropy_quantizers(variances: Sequence[Tensor], bits: float) -> list[EntropyQuantizer]:
    """One quantizer per side, given the variances of its components in descending order.

    They take ``bits`` per component over all sides, blocks' exponents included. A quantizer keeps the leading
    components that rise above the step (at least one).

    Raises:
        KvbenchError: numba is missing, or ``bits`` is too small to code anything.
    """
    deviations = [side.double().clamp_min(0).sqrt().cpu().numpy() for side in variances]
    elements = sum(map(len, deviations))
    budget = int((bits * elements * BLOCK / 8 - EXPONENT_BYTES * len(deviations)) // 2)  # words
    highest = np.log2(max(float(side.max()) for side in deviations) or 1.0)
    fine, coarse = highest - 30, highest + 10
    least = sum(_words(deviations, 2.0**coarse))
    if least > budget:
        least_bits = 8 * (2 * least + EXPONENT_BYTES * len(deviations)) / elements / BLOCK
        raise KvbenchError(f"entropy coding needs at least {least_bits:.2g} bits here; got bits={bits:g}")
    for _ in range(40):
        middle = (fine + coarse) / 2
        fine, coarse = (fine, middle) if sum(_words(deviations, 2.0**middle)) <= budget else (middle, coarse)
    step = 2.0**coarse
    words = np.array(_words(deviations, step))
    words += np.diff(np.linspace(0, budget - words.sum(), len(words) + 1).astype(int))  # what rounding left over
    kept = [torch.from_numpy(_kept(side, step)) for side in deviations]
    return [EntropyQuantizer(side, step, 2 * int(count)) for side, count in zip(kept, words, strict=True)]


def _kept(deviations: Vector, step: float) -> Vector:
    """The leading components that ever leave zero."""
    return deviations[: max(1, int((deviations > step * FLOOR).sum()))]


def _words(deviations: list[Vector], step: float) -> list[int]:
    """Words that a block of each side takes at this step."""
    shared = tables()
    return [shared.words(_kept(side, step) / step) for side in deviations]


def _spread(count: int, work: Callable[[slice], None]) -> None:
    """``work`` on slices of ``count`` blocks, on as many threads as torch uses; kernels release the lock."""
    workers = max(1, min(torch.get_num_threads(), count))
    bounds = [count * worker // workers for worker in range(workers + 1)]
    spans = [slice(first, last) for first, last in itertools.pairwise(bounds)]
    if workers == 1:
        work(spans[0])
    else:
        list(_pool(workers).map(work, spans))


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="kvbench-entropy")


def tables() -> EntropyTables:
    """The shared tables.

    Raises:
        KvbenchError: numba is missing.
    """
    try:
        from kvbench.codecs.quantizers.entropy_tables import entropy_tables
    except ModuleNotFoundError as error:
        raise KvbenchError(f"coder=entropy needs {error.name}; install it with `pip install {error.name}`") from error
    return entropy_tables()
