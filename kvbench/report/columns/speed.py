"""Columns of the speed part: times, speed-ups and the roofline."""

from __future__ import annotations

from collections.abc import Callable

from kvbench.measure.parts.speed import SpeedResult
from kvbench.measure.results import Interval
from kvbench.report.columns.column import Cell, Column, Trend, mebibyte_cell, milliseconds, plain, two_decimals
from kvbench.report.numbers import ratio, ratio_spread, short
from kvbench.runs.records import Record


def _speed(show: Callable[[SpeedResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return lambda record: show(record.speed) if record.speed else None


def speed_up(value: float | None, interval: Interval | None) -> Cell | None:
    """A ratio of speeds with its interval, and on which side of 1 that lies."""
    return None if value is None else Cell(ratio(value), value, ratio_spread(value, interval), trend_of(interval))


def trend_of(interval: Interval | None) -> Trend | None:
    """None where nothing is known about the noise, or where the two were the same runs."""
    if interval is None or interval.low == interval.high:
        return None
    if interval.low > 1:
        return Trend.FASTER
    return Trend.SLOWER if interval.high < 1 else Trend.SAME


TO_NONE = Column(
    "× none",
    "Decoding speed-up over none, kvbench's own uncompressed cache: the ratio of mean steps over whole block cycles, "
    "with a 95 % interval; both were timed in the same rounds. ▲ the whole interval is above 1 (faster), ▼ below "
    "(slower), ≈ it includes 1.",
    _speed(lambda speed: speed_up(speed.ratio_to_none, speed.ratio_to_none_interval)),
    summary=True,
)
TO_16_BIT = Column(
    "× 16-bit",
    "The same over none in 16 bit: kvbench's own uncompressed cache of float16 keys and values, or in the model's dtype"
    " where that has 16 bit. What compression gains beyond a narrower dtype.",
    _speed(lambda speed: speed_up(speed.ratio_to_16_bit, speed.ratio_to_16_bit_interval)),
    summary=True,
    importance=8,
)
TO_HF = Column(
    "× hf",
    "The same over hf: the stock cache and attention of transformers, what a user has today.",
    _speed(lambda speed: speed_up(speed.ratio_to_hf, speed.ratio_to_hf_interval)),
    summary=True,
    importance=4,
)

LEGEND = "× none, × 16-bit, × hf: ▲ faster ▼ slower ≈ no clear difference"

COLUMNS = (
    Column(
        "TTFT\nms",
        "Time to first token: one row's exact prefill, and compression of the prompt, in a batch of every row's.",
        _speed(lambda speed: milliseconds(speed.ttft_s)),
    ),
    Column(
        "TPOT\nms",
        "Time per output token while decoding: the mean over whole block cycles, so that encoding what leaves the "
        "exact window is paid for.",
        _speed(lambda speed: milliseconds(speed.tpot_s)),
        summary=True,
        importance=8,
    ),
    Column(
        "TPOT\np50 ms",
        "Median of the time per output token: a step that encodes nothing.",
        _speed(lambda speed: milliseconds(speed.tpot_p50_s)),
        importance=24,
    ),
    Column(
        "TPOT\np90 ms",
        "90th percentile of the time per output token.",
        _speed(lambda speed: milliseconds(speed.tpot_p90_s)),
        importance=25,
    ),
    Column(
        "TPOT\np99 ms",
        "99th percentile of the time per output token: a step that encodes a block.",
        _speed(lambda speed: milliseconds(speed.tpot_p99_s)),
        importance=23,
    ),
    Column(
        "encode\nms/token",
        "What encoding adds to the mean step: the mean of all timed steps minus that of the steps which encode "
        "nothing.",
        _speed(lambda speed: None if speed.encode_s_per_token is None else milliseconds(speed.encode_s_per_token)),
        importance=28,
    ),
    Column(
        "tokens/s",
        "Decoded tokens a second over whole block cycles, all sequences of the batch together.",
        _speed(lambda speed: plain(speed.tokens_per_s, short)),
    ),
    TO_NONE,
    TO_16_BIT,
    TO_HF,
    Column(
        "× none\nceiling",
        "Roofline: the decoding speed-up over an uncompressed cache if both ran as fast as this machine can read "
        "their weights, cache and bases and do their operations. A measured speed-up above it means that none is "
        "further from its bound.",
        _speed(lambda speed: plain(speed.roofline.ceiling, two_decimals) if speed.roofline else None),
        importance=29,
    ),
    Column(
        "% of\nroofline",
        "Share of the measured time per output token that this machine needs at least to read the step's bytes and do"
        " its operations.",
        _speed(
            lambda speed: (
                Cell(f"{100 * speed.roofline.achieved:.0f}", speed.roofline.achieved) if speed.roofline else None
            )
        ),
        importance=30,
    ),
    Column(
        "attends",
        "What attended to the stored tokens, read back from the live cache. numba and triton are kernels, torch is "
        "plain torch: exact, latents, int, levels are read as they are stored; absorbed: decoded, and attended to as "
        "latents; bands: as latents, but keys of fast RoPE pairs are rebuilt; rebuilt: keys are rebuilt, and "
        "rotated if stored before RoPE, values stay latents; decoded: both are decoded, and keys stored before RoPE "
        "rotated. stock: transformers' own attention.",
        _speed(lambda speed: Cell(speed.attention, None)),
        summary=True,
        importance=1,
    ),
    Column(
        "MiB\ntimed",
        "What the very cache that was timed held right after the prompt, walked from its tensor storages.",
        _speed(lambda speed: mebibyte_cell(speed.allocated.total) if speed.allocated else None),
        importance=27,
    ),
    Column(
        "KLD of\nsteps",
        "Mean KL(uncompressed ‖ compressed) of the timed steps: none decoded the same tokens in the same rounds.",
        _speed(lambda speed: plain(speed.kld_mean, short)),
        importance=26,
    ),
)
