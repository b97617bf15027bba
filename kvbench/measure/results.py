"""What a measurement finds, as it is recorded: memory, speed and quality of one compressor on one model.

Sizes are bytes, times seconds, intervals 95 %. Everything is immutable and validated; sequences are tuples. A field
that a later version adds has a default, so that older records can be read.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, model_validator

from kvbench.storage.frozen import Frozen

if TYPE_CHECKING:
    from kvbench.cache.cache import CacheBytes


class Interval(Frozen):
    """A 95 % confidence interval."""

    low: float
    high: float

    @classmethod
    def of(cls, bounds: tuple[float, float] | None) -> Interval | None:
        """From (low, high); None where there is no interval."""
        return None if bounds is None else cls(low=bounds[0], high=bounds[1])

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if self.low > self.high:
            raise ValueError(f"interval is upside down: low {self.low} above high {self.high}")
        return self


class Bytes(Frozen):
    """A cache's allocated bytes by what they hold."""

    payload: NonNegativeInt = 0
    scales: NonNegativeInt = 0
    exact: NonNegativeInt = 0
    positions: NonNegativeInt = 0
    slack: NonNegativeInt = 0
    workspace: NonNegativeInt = 0

    @classmethod
    def of(cls, sizes: CacheBytes) -> Bytes:
        """What a walk over a cache has found."""
        return cls(**asdict(sizes))

    @property
    def total(self) -> int:
        """All kinds together."""
        return self.payload + self.scales + self.exact + self.positions + self.slack + self.workspace


class MemoryResult(Frozen):
    """The cache's size after ``tokens`` tokens in each of ``batch`` sequences. Ratios are against 16-bit K and V."""

    tokens: int
    batch: int
    dtype: str
    allocated: Bytes
    predicted_bytes: int
    prediction_error: float
    """(allocated - predicted) / allocated."""
    model_level_bytes: int
    """Stored once for all caches: bases, codebooks."""
    rope_table_bytes: int
    bytes_per_token: float
    ratio_allocated: float
    ratio_predicted: float
    ratio_claimed: float | None = None
    bits_per_element: float
    bits_with_bases: float | None = None
    """The same with ``model_level_bytes``: what this batch and length take in all."""
    break_even_tokens: int | None = None
    """The shortest sequence that, like every longer one, takes fewer bytes with its bases than 16-bit K and V; None if
    there is none (:func:`kvbench.cache.break_even.break_even_tokens`)."""
    body_bits_per_element: float | None = None
    largest_bytes: int | None = None
    """The most that the cache held while tokens were decoded after the prompt; None where none were."""
    peak_prefill_bytes: int | None = None
    """Over ``baseline_rss_bytes``, with the whole prompt at once."""
    peak_prefill_chunked_bytes: int | None = None
    """The same with the prompt in chunks that are compressed in between; None where it is no longer than one."""
    peak_decode_bytes: int | None = None
    baseline_rss_bytes: int | None = None
    flagged: bool = False
    """True where predicted and allocated bytes differ by more than 1 %."""


class RooflineResult(Frozen):
    """A decode step against the machine's peaks, measured in the same process: bytes, operations, bytes or operations
    per second (:func:`kvbench.measure.roofline.roofline`). Bounds are the least times of a step with this cache and
    with an uncompressed one."""

    read_bandwidth: float
    peak_operations: float
    weight_bytes: int
    cache_bytes: int
    basis_bytes: int = 0
    none_cache_bytes: int
    operations: int
    none_operations: int
    bound_s: float
    none_bound_s: float
    ceiling: float
    """Speed-up over an uncompressed cache if both ran at their bounds."""
    achieved: float
    """Share of the bound in the measured step."""


class SpeedResult(Frozen):
    """Times of one compressor over whole block cycles. Ratios are speed-ups over ``none`` and ``hf``, whose time per
    token was measured in the same rounds: above 1 means that this compressor is faster
    (:func:`kvbench.measure.cycles.speed_up`)."""

    batch: int
    prompt: int
    steps: int
    cycle: int = 1
    """Steps from one encoding of a block to the next; the timed steps are whole cycles."""
    ttft_s: float
    """``prefill_s``, one row's exact prefill, and ``compress_s``, taking the prompt of the whole batch in."""
    prefill_s: float
    compress_s: float
    tpot_s: float
    """Mean time per output token over all timed steps, those that encode a block among them."""
    tpot_p50_s: float
    tpot_p90_s: float
    tpot_p99_s: float
    encode_s_per_token: float | None = None
    """What encoding adds to the mean step: that of all timed steps minus that of the steps which encode nothing."""
    tokens_per_s: float
    raw_step_s: tuple[float, ...]
    ratio_to_none: float | None = None
    ratio_to_none_interval: Interval | None = None
    ratio_to_hf: float | None = None
    ratio_to_hf_interval: Interval | None = None
    interval_method: str = ""
    """What made both intervals."""
    attention: str
    """What attended to the stored tokens, read back from the live cache (:mod:`kvbench.cache.way`)."""
    allocated: Bytes | None = None
    """Bytes of the timed cache right after the prompt."""
    largest_bytes: int | None = None
    """Its most bytes from then on, walked between turns."""
    kld_mean: float | None = None
    """KLD of the timed steps against ``none``, which decoded the same tokens in the same rounds: what the very cache
    that was timed makes of them."""
    roofline: RooflineResult | None = None


class DecodedResult(Frozen):
    """The first scored tokens of every document, decoded one by one through the decode path.

    ``kld_mean`` and ``block_kld_mean`` are mean KLDs over the same tokens, decoded and scored in blocks, both against
    the uncompressed model scored in blocks."""

    tokens: int
    kld_mean: float
    block_kld_mean: float
    from_blocks_kld: float
    """Mean KL(scored in blocks ‖ decoded) of this compressor: what the kernels' rounding amounts to."""
    attention: str
    """The implementation that ran, read back from the live cache."""


class QualityResult(Frozen):
    """Distance of the compressed model's next-token distributions from the uncompressed model's, in nats."""

    documents: int
    tokens: int
    perplexity: float
    baseline_perplexity: float
    delta_nll: float
    delta_nll_interval: Interval | None = None
    kld_mean: float
    kld_median: float
    kld_p99: float
    kld_max: float
    kld_interval: Interval | None = None
    interval_method: str = ""
    """What made both intervals, or would have of more documents (:mod:`kvbench.measure.statistics`)."""
    same_top1: float
    noise_floor_kld: float
    """KLD of the uncompressed model against itself on another execution path: nothing below it is a difference."""
    per_document_kld: tuple[float, ...]
    document_ids: tuple[str, ...] = ()
    """The documents, in the order of ``per_document_kld``."""
    body_bits: float | None = None
    decoded: DecodedResult | None = None
    """None where the workload does not request it."""
