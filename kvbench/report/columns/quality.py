"""Columns of the quality part: perplexity, KLD, and the same tokens decoded one by one."""

from __future__ import annotations

import math
from collections.abc import Callable

from kvbench.measure.parts.quality import LEVELS, DecodedResult, QualityResult, TokenStatistics
from kvbench.measure.results import Interval
from kvbench.report.columns.column import Cell, Column, plain
from kvbench.report.numbers import measured, short, spread
from kvbench.runs.records import Record

BELOW_NOISE = "≤ noise"
"""Shown for a KLD that the uncompressed model also has against itself."""


def _quality(show: Callable[[QualityResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return lambda record: show(record.quality) if record.quality else None


def _decoded(show: Callable[[DecodedResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return _quality(lambda quality: show(quality.decoded) if quality.decoded else None)


def _statistics(show: Callable[[TokenStatistics], Cell | None]) -> Callable[[Record], Cell | None]:
    return _quality(lambda quality: show(quality.statistics) if quality.statistics else None)


def _percentiles(values: tuple[float, ...], form: Callable[[float], str]) -> str:
    return ", ".join(f"{form(value)} at {level:g}" for level, value in zip(LEVELS, values, strict=True))


def _distances(statistics: TokenStatistics) -> Cell:
    bins = [f"{each.first:,}-{each.last:,}: {short(each.kld_mean)}" for each in statistics.kld_by_distance]
    return Cell("; ".join(bins), None)


def is_above_noise(quality: QualityResult) -> bool:
    """False for a KLD that the uncompressed model also has against itself; rounding can make it negative."""
    return not quality.kld_mean <= max(quality.noise_floor_kld, 0.0)


def _perplexity(quality: QualityResult) -> Cell:
    """Digits from the paired difference to the baseline: both saw the same tokens."""
    delta = quality.delta_nll_interval
    scale = quality.perplexity
    interval = Interval(low=scale * delta.low, high=scale * delta.high) if delta and math.isfinite(scale) else None
    return Cell(measured(scale, interval, digits=4), scale)


def _kld(quality: QualityResult) -> Cell:
    if not is_above_noise(quality):
        return Cell(BELOW_NOISE, quality.kld_mean)
    value, interval = quality.kld_mean, quality.kld_interval
    return Cell(measured(value, interval, decimals=5), value, spread(value, interval, decimals=5))


KLD = Column(
    "KLD",
    "Mean KL(uncompressed ‖ compressed) of the next-token distributions per scored token, in nats, over the whole "
    "vocabulary; the 95 % interval is over documents. 0 is no change.",
    _quality(_kld),
    summary=True,
)
TOP1 = Column(
    "same\ntop-1",
    "Share of scored tokens at which the compressed and the uncompressed model rank the same token first.",
    _quality(lambda quality: plain(quality.same_top1, lambda share: f"{share:.1%}")),
    summary=True,
)

COLUMNS = (
    Column(
        "PPL",
        "Perplexity: exp of the mean negative log-likelihood of the scored tokens. The first tokens of each document "
        "are prefilled and compressed; the rest is scored through the compressed cache as if decoded token by token.",
        _quality(_perplexity),
        summary=True,
        importance=5,
    ),
    Column(
        "PPL of\nnone",
        "Perplexity of the same tokens with the uncompressed cache.",
        _quality(lambda quality: plain(quality.baseline_perplexity, lambda value: short(value, 4))),
        importance=20,
    ),
    KLD,
    Column(
        "KLD\np99",
        "99th percentile of the KLD over tokens: what the worst token in a hundred loses.",
        _quality(lambda quality: plain(quality.kld_p99, short)),
        importance=31,
    ),
    Column(
        "KLD\nmax",
        "The worst token.",
        _quality(lambda quality: plain(quality.kld_max, short)),
        importance=22,
    ),
    Column(
        "noise\nfloor",
        "KLD of the uncompressed model against itself on another execution path. Nothing at or below it is a "
        "difference; a KLD there is shown as ≤ noise.",
        _quality(lambda quality: plain(quality.noise_floor_kld, lambda value: short(value, 2))),
        importance=21,
    ),
    TOP1,
    Column(
        "top-5\noverlap",
        "Mean share of the uncompressed model's five likeliest next tokens among the compressed model's five.",
        _statistics(lambda each: plain(each.top5_overlap, lambda share: f"{share:.1%}")),
        importance=13,
    ),
    Column(
        "PPL\nratio",
        "Perplexity over that of the same tokens with the uncompressed cache.",
        _quality(lambda quality: plain(quality.perplexity_ratio, lambda ratio: short(ratio, 5))),
        importance=8,
    ),
    Column(
        "NLL\ncorrelation",
        "Pearson's correlation of the tokens' negative log-likelihoods, compressed and uncompressed.",
        _statistics(lambda each: plain(each.nll_correlation, lambda value: f"{100 * value:.3f} %")),
        importance=4,
    ),
    Column(
        "Δp mean\npoints",
        "Mean change of the probability of the document's own next token, in points of 100.",
        _statistics(lambda each: plain(each.delta_p_mean, lambda share: f"{100 * share:+.3f}")),
        importance=6,
    ),
    Column(
        "Δp RMS\npoints",
        "Root of the mean square of the same change.",
        _statistics(lambda each: plain(each.delta_p_rms, lambda share: f"{100 * share:.3f}")),
        importance=12,
    ),
    Column(
        "KLD ±\ntokens",
        "Standard error of the mean KLD as llama.cpp prints it, as if tokens were independent of each other. The "
        "interval beside the KLD is over documents.",
        _statistics(lambda each: plain(each.kld_standard_error, lambda error: short(error, 2))),
        importance=3,
    ),
    Column(
        "KLD\npercentiles",
        "Of the KLD over tokens, at each per cent.",
        _statistics(lambda each: Cell(_percentiles(each.kld_percentiles, short), None)),
        importance=2,
    ),
    Column(
        "Δp\npercentiles",
        "Of the change of probability over tokens, in points of 100, at each per cent.",
        _statistics(lambda e: Cell(_percentiles(e.delta_p_percentiles, lambda p: f"{100 * p:+.2f}"), None)),
        importance=1,
    ),
    Column(
        "overlap\n%",
        "Share of the scored documents' runs of 13 tokens that the calibration windows have, too: what is there was "
        "fitted on what it is scored on.",
        _quality(lambda quality: plain(quality.calibration_overlap, lambda share: f"{100 * share:.2f}")),
        importance=3,
    ),
    Column(
        "KLD by\ndistance",
        "Mean KLD of the tokens from one to another distance after the prompt, where its compression ends.",
        _statistics(_distances),
        importance=2,
    ),
    Column(
        "KLD\ndecoded",
        "KLD of the first scored tokens, decoded one by one through the decode kernels, against the uncompressed "
        "model's distributions from scoring in blocks.",
        _decoded(lambda decoded: plain(decoded.kld_mean, short)),
        importance=11,
    ),
    Column(
        "same tokens\nin blocks",
        "KLD of the very tokens that were decoded one by one, scored in blocks: the two must agree.",
        _decoded(lambda decoded: plain(decoded.block_kld_mean, short)),
        importance=10,
    ),
    Column(
        "decoded\nby",
        "The attention implementation that decoded them, read back from the live cache.",
        _decoded(lambda decoded: Cell(decoded.attention, None)),
        importance=9,
    ),
)
