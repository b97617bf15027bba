"""What a result must agree on with itself, whatever the baseline says.

Tokens that are decoded one by one attend through the decode kernels; in blocks the same tokens attend in plain torch.
Both read the same compressed cache. What lies between them is the kernels' rounding of queries and weights, and no part
of what the compressor loses.
"""

from __future__ import annotations

from kvbench.measure.parts.quality import DecodedResult
from kvbench.runs.records import Record

ROUNDING = 10.0
"""What is lossless has a KLD of the size of the noise floor; up to so many of it count as rounding."""

LEAST = 1e-11
"""What always counts as rounding: on the shortest texts two execution paths happen to agree to the last bit."""

SHARE = 0.01
"""Most of a compressor's own KLD that may lie between decoding and blocks; kernels round far less than this."""


def rounding(noise_floor: float) -> float:
    """The largest KLD that is no loss where this is the noise floor."""
    return max(ROUNDING * noise_floor, LEAST)


def contradiction(record: Record) -> str:
    """In words, how ``record`` contradicts itself; empty if it does not."""
    quality = record.quality
    if quality is None or quality.decoded is None:
        return ""
    decoded = quality.decoded
    limit = max(SHARE * decoded.block_kld_mean, rounding(quality.noise_floor_kld))
    return "" if decoded.from_blocks_kld <= limit else _words(decoded, limit)


def _words(decoded: DecodedResult, limit: float) -> str:
    return (
        f"decoding token by token (attended by {decoded.attention}) does not agree with scoring the same "
        f"{decoded.tokens} tokens in blocks: KLD {decoded.kld_mean:.3g} and {decoded.block_kld_mean:.3g} to the "
        f"uncompressed model, {decoded.from_blocks_kld:.3g} between the two where at most {limit:.3g} is rounding"
    )
