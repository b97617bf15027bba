"""The columns of every table: what is shown of a record, how it sorts, and what it means.

Terminal, Markdown and HTML draw from these lists, so a number has one name, one form and one definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from kvbench.report.numbers import fixed, measured, mebibytes, short, spread
from kvbench.runs.records import DecodedResult, Interval, MemoryResult, QualityResult, Record, SpeedResult

BELOW_NOISE = "≤ noise"
"""Shown for a KLD that the uncompressed model also has against itself."""


class Trend(Enum):
    """How a speed-up's whole interval lies to 1: a symbol and a word, so that colour is never alone."""

    FASTER = "▲"
    SLOWER = "▼"
    SAME = "≈"

    @property
    def word(self) -> str:
        """For people who hear the table."""
        return {"▲": "faster", "▼": "slower", "≈": "no clear difference"}[self.value]


@dataclass(frozen=True)
class Cell:
    """One number of a table. ``sort`` is the number itself, None for a word; ``spread`` its interval, or empty."""

    text: str
    sort: float | None
    spread: str = ""
    trend: Trend | None = None


@dataclass(frozen=True)
class Column:
    """``title`` may have several lines. ``cell`` gives None where the record has no such number."""

    title: str
    meaning: str
    cell: Callable[[Record], Cell | None]

    @property
    def heading(self) -> str:
        """The title in one line."""
        return self.title.replace("/\n", "/").replace("\n", " ")


def _memory(show: Callable[[MemoryResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return lambda record: show(record.memory) if record.memory else None


def _speed(show: Callable[[SpeedResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return lambda record: show(record.speed) if record.speed else None


def _quality(show: Callable[[QualityResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return lambda record: show(record.quality) if record.quality else None


def _decoded(show: Callable[[DecodedResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return _quality(lambda quality: show(quality.decoded) if quality.decoded else None)


def body_bits(record: Record) -> float | None:
    """Bits per element of the compressed body, from whichever measurement knows them."""
    known = (
        record.memory.body_bits_per_element if record.memory else None,
        record.quality.body_bits if record.quality else None,
    )
    return next((value for value in known if value is not None), None)


def is_above_noise(quality: QualityResult) -> bool:
    """False for a KLD that the uncompressed model also has against itself; rounding can make it negative."""
    return not quality.kld_mean <= max(quality.noise_floor_kld, 0.0)


def _plain(value: float | None, form: Callable[[float], str]) -> Cell | None:
    return None if value is None else Cell(form(value), value)


def _two(value: float) -> str:
    return fixed(value, 2)


def _size(count: int | None) -> Cell | None:
    return None if count is None else Cell(mebibytes(count), count)


def _milliseconds(seconds: float) -> Cell:
    return Cell(short(seconds * 1e3), seconds)


def _speed_up(ratio: float | None, interval: Interval | None) -> Cell | None:
    if ratio is None:
        return None
    return Cell(measured(ratio, interval, decimals=2), ratio, spread(ratio, interval, decimals=2), _trend(interval))


def _trend(interval: Interval | None) -> Trend | None:
    """None where nothing is known about the noise, or where the two were the same runs."""
    if interval is None or interval.low == interval.high:
        return None
    if interval.low > 1:
        return Trend.FASTER
    return Trend.SLOWER if interval.high < 1 else Trend.SAME


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


def _break_even(tokens: int | None) -> Cell:
    return Cell("never", None) if tokens is None else Cell(f"{tokens:,}", tokens)


def _parts(memory: MemoryResult) -> Cell | None:
    """Shares of the allocated bytes, in per cent."""
    held = memory.allocated
    if not held.total:
        return None
    others = held.positions + held.slack + held.workspace
    shares = (100 * part / held.total for part in (held.payload, held.scales, held.exact, others))
    return Cell("/".join(f"{share:.0f}" for share in shares), None)


BITS = Column(
    "bits",
    "Bits per element of K and V: all bytes that the cache has allocated, times 8, over the number of K and V elements "
    "that an uncompressed cache would hold. Scales, indices, exact tokens, unused capacity and workspace count.",
    _memory(lambda memory: _plain(memory.bits_per_element, _two)),
)
BITS_WITH_BASES = Column(
    "bits +\nbases",
    "The same with the bytes of projection bases and codebooks, which are held once for all caches of the model: what "
    "this batch at this length takes in all. More sequences, or longer ones, bring it down to the bits.",
    _memory(lambda memory: _plain(memory.bits_with_bases, _two)),
)
BREAK_EVEN = Column(
    "pays from\ntokens",
    "The shortest single sequence that, like every longer one, takes fewer bytes compressed, with bases and exact "
    "tokens, than 16-bit K and V would: from arithmetic. “never” where there is none.",
    _memory(lambda memory: _break_even(memory.break_even_tokens)),
)
BODY_BITS = Column(
    "body\nbits",
    "Bits per element of the compressed body alone, scales and indices included: what remains of the bits when the "
    "context is so long that the exact first and recent tokens no longer weigh.",
    lambda record: _plain(body_bits(record), _two),
)
ASKED = Column(
    "bits\nasked",
    "What the compressor was solved for, in bits per element. Where it cannot take that, the row is its nearest size, "
    "and a remark under the table says so.",
    lambda record: Cell(", ".join(f"{bits:g}" for bits in record.solved_for), None) if record.solved_for else None,
)
RATIO = Column(
    "ratio",
    "Bytes of 16-bit K and V over allocated bytes, whatever dtype the run used: a float32 run without compression "
    "has ratio 0.5. Above 1 saves memory against a 16-bit cache.",
    _memory(lambda memory: _plain(memory.ratio_allocated, _two)),
)
PREDICTED = Column(
    "ratio\npredicted",
    "The same ratio from arithmetic alone, before anything is allocated. Where predicted and allocated bytes differ by "
    "more than 1 % the row is flagged.",
    _memory(lambda memory: _plain(memory.ratio_predicted, _two)),
)
CLAIMED = Column(
    "ratio\nclaimed",
    "The ratio that the method's own description leads to, usually without scales, exact tokens and workspace.",
    _memory(lambda memory: _plain(memory.ratio_claimed, _two)),
)
CACHE = Column(
    "cache\nMiB",
    "What the cache's tensor storages hold after the workload's tokens, all layers and sequences, each storage once. "
    "1 MiB is 1,048,576 bytes.",
    _memory(lambda memory: _size(memory.allocated.total)),
)
LARGEST = Column(
    "cache MiB\nat most",
    "The most that the cache held from the prompt's end through the workload's decoded tokens: blocks of tokens leave "
    "the exact window together, so its size rises and falls.",
    _memory(lambda memory: _size(memory.largest_bytes)),
)
PARTS = Column(
    "% payload/\nscales/exact/\nother",
    "Shares of the allocated bytes: codes or latents; scales and indices; the exact first and recent tokens; "
    "positions, unused capacity and workspace.",
    _memory(_parts),
)
BASES = Column(
    "bases\nMiB",
    "Held once for all caches of the model and not part of the cache: projection bases and codebooks.",
    _memory(lambda memory: _size(memory.model_level_bytes)),
)
PEAK_PREFILL = Column(
    "peak MiB\nprefill",
    "Highest memory during prefill of the whole prompt at once, above what was in use before it (weights, bases, "
    "runtime): the resident memory of the trial's own process on a CPU, torch's allocator on a GPU.",
    _memory(lambda memory: _size(memory.peak_prefill_bytes)),
)
PEAK_CHUNKED = Column(
    "peak MiB\nin chunks",
    "The same with the prompt in chunks of the workload's size, each compressed before the next is prefilled. What "
    "compresses only after a whole prompt hardly lowers the peak of its prefill.",
    _memory(lambda memory: _size(memory.peak_prefill_chunked_bytes)),
)
PEAK_DECODE = Column(
    "peak MiB\ndecode",
    "The same during decoding, the cache included.",
    _memory(lambda memory: _size(memory.peak_decode_bytes)),
)
TTFT = Column(
    "TTFT\nms",
    "Time to first token: one row's exact prefill, and compression of the prompt, in a batch of every row's.",
    _speed(lambda speed: _milliseconds(speed.ttft_s)),
)
TPOT = Column(
    "TPOT\nms",
    "Time per output token while decoding: the mean over whole block cycles, so that encoding what leaves the exact "
    "window is paid for.",
    _speed(lambda speed: _milliseconds(speed.tpot_s)),
)
TPOT_MEDIAN = Column(
    "TPOT\np50 ms",
    "Median of the time per output token: a step that encodes nothing.",
    _speed(lambda speed: _milliseconds(speed.tpot_p50_s)),
)
TPOT_HIGH = Column(
    "TPOT\np90 ms",
    "90th percentile of the time per output token.",
    _speed(lambda speed: _milliseconds(speed.tpot_p90_s)),
)
TPOT_TAIL = Column(
    "TPOT\np99 ms",
    "99th percentile of the time per output token: a step that encodes a block.",
    _speed(lambda speed: _milliseconds(speed.tpot_p99_s)),
)
ENCODING = Column(
    "encode\nms/token",
    "What encoding adds to the mean step: the mean of all timed steps minus that of the steps which encode nothing.",
    _speed(lambda speed: None if speed.encode_s_per_token is None else _milliseconds(speed.encode_s_per_token)),
)
THROUGHPUT = Column(
    "tokens/s",
    "Decoded tokens a second over whole block cycles, all sequences of the batch together.",
    _speed(lambda speed: _plain(speed.tokens_per_s, short)),
)
TIMED_CACHE = Column(
    "MiB\ntimed",
    "What the very cache that was timed held right after the prompt, walked from its tensor storages.",
    _speed(lambda speed: _size(speed.allocated.total) if speed.allocated else None),
)
STEP_KLD = Column(
    "KLD of\nsteps",
    "Mean KL(uncompressed ‖ compressed) of the timed steps: none decoded the same tokens in the same rounds.",
    _speed(lambda speed: _plain(speed.kld_mean, short)),
)
TO_NONE = Column(
    "× none",
    "Decoding speed-up over none, kvbench's own uncompressed cache: the ratio of mean steps over whole block cycles, "
    "with a 95 % interval; both were timed in the same rounds. ▲ the whole interval is above 1 (faster), ▼ below "
    "(slower), ≈ it includes 1.",
    _speed(lambda speed: _speed_up(speed.ratio_to_none, speed.ratio_to_none_interval)),
)
TO_HF = Column(
    "× hf",
    "The same over hf: the stock cache and attention of transformers, what a user has today.",
    _speed(lambda speed: _speed_up(speed.ratio_to_hf, speed.ratio_to_hf_interval)),
)
CEILING = Column(
    "× none\nceiling",
    "Roofline: the decoding speed-up over an uncompressed cache if both ran as fast as this machine can read their "
    "weights, cache and bases and do their operations. A measured speed-up above it means that none is further from "
    "its bound.",
    _speed(lambda speed: _plain(speed.roofline.ceiling, _two) if speed.roofline else None),
)
ACHIEVED = Column(
    "% of\nroofline",
    "Share of the measured time per output token that this machine needs at least to read the step's bytes and do its "
    "operations.",
    _speed(
        lambda speed: Cell(f"{100 * speed.roofline.achieved:.0f}", speed.roofline.achieved) if speed.roofline else None
    ),
)
ATTENTION = Column(
    "attends",
    "What attended to the stored tokens, read back from the live cache. numba and triton are kernels, torch is plain "
    "torch: exact, latents, int, levels are read as they are stored; absorbed: decoded, and attended to as latents; "
    "rebuilt: keys and values are decoded, and keys stored before RoPE rotated. stock: transformers' own attention.",
    _speed(lambda speed: Cell(speed.attention, None)),
)
PERPLEXITY = Column(
    "PPL",
    "Perplexity: exp of the mean negative log-likelihood of the scored tokens. The first tokens of each document are "
    "prefilled and compressed; the rest is scored through the compressed cache as if decoded token by token.",
    _quality(_perplexity),
)
BASELINE_PERPLEXITY = Column(
    "PPL of\nnone",
    "Perplexity of the same tokens with the uncompressed cache.",
    _quality(lambda quality: _plain(quality.baseline_perplexity, lambda value: short(value, 4))),
)
KLD = Column(
    "KLD",
    "Mean KL(uncompressed ‖ compressed) of the next-token distributions per scored token, in nats, over the whole "
    "vocabulary; the 95 % interval is over documents. 0 is no change.",
    _quality(_kld),
)
KLD_TAIL = Column(
    "KLD\np99",
    "99th percentile of the KLD over tokens: what the worst token in a hundred loses.",
    _quality(lambda quality: _plain(quality.kld_p99, short)),
)
KLD_MAX = Column(
    "KLD\nmax",
    "The worst token.",
    _quality(lambda quality: _plain(quality.kld_max, short)),
)
KLD_DECODED = Column(
    "KLD\ndecoded",
    "KLD of the first scored tokens, decoded one by one through the decode kernels, against the uncompressed model's "
    "distributions from scoring in blocks.",
    _decoded(lambda decoded: _plain(decoded.kld_mean, short)),
)
KLD_SAME_TOKENS = Column(
    "same tokens\nin blocks",
    "KLD of the very tokens that were decoded one by one, scored in blocks: the two must agree.",
    _decoded(lambda decoded: _plain(decoded.block_kld_mean, short)),
)
DECODED_BY = Column(
    "decoded\nby",
    "The attention implementation that decoded them, read back from the live cache.",
    _decoded(lambda decoded: Cell(decoded.attention, None)),
)
NOISE = Column(
    "noise\nfloor",
    "KLD of the uncompressed model against itself on another execution path. Nothing at or below it is a difference; "
    "a KLD there is shown as ≤ noise.",
    _quality(lambda quality: _plain(quality.noise_floor_kld, lambda value: short(value, 2))),
)
TOP1 = Column(
    "same\ntop-1",
    "Share of scored tokens at which the compressed and the uncompressed model rank the same token first.",
    _quality(lambda quality: _plain(quality.same_top1, lambda share: f"{share:.1%}")),
)

SUMMARY = (ASKED, BITS, BITS_WITH_BASES, RATIO, CACHE, TPOT, TO_NONE, TO_HF, ATTENTION, PERPLEXITY, KLD, TOP1)
MEMORY = (
    *(ASKED, BITS, BITS_WITH_BASES, BODY_BITS, CLAIMED, PREDICTED, RATIO, CACHE, LARGEST, PARTS, BASES, BREAK_EVEN),
    *(PEAK_PREFILL, PEAK_CHUNKED, PEAK_DECODE),
)
SPEED = (
    *(TTFT, TPOT, TPOT_MEDIAN, TPOT_HIGH, TPOT_TAIL, ENCODING, THROUGHPUT),
    *(TO_NONE, TO_HF, CEILING, ACHIEVED, ATTENTION, TIMED_CACHE, STEP_KLD),
)
QUALITY = (
    *(PERPLEXITY, BASELINE_PERPLEXITY, KLD, KLD_TAIL, KLD_MAX, NOISE, TOP1),
    *(KLD_DECODED, KLD_SAME_TOKENS, DECODED_BY),
)

LESSER = (
    *(ATTENTION, CACHE, ASKED, TO_HF, PERPLEXITY, RATIO, BITS_WITH_BASES, TPOT),
    *(DECODED_BY, KLD_SAME_TOKENS, KLD_DECODED),
    *(PEAK_PREFILL, PEAK_CHUNKED, PEAK_DECODE, LARGEST, BASES, PARTS, CLAIMED, BREAK_EVEN),
    *(
        BASELINE_PERPLEXITY,
        NOISE,
        KLD_MAX,
        TPOT_TAIL,
        TPOT_MEDIAN,
        TPOT_HIGH,
        STEP_KLD,
        TIMED_CACHE,
        ENCODING,
        CEILING,
        ACHIEVED,
        KLD_TAIL,
    ),
)
"""Left out one after the other where a terminal is too narrow."""

DETAILS = {"memory": MEMORY, "speed": SPEED, "quality": QUALITY}
"""Every number of a record, by the part of the record that holds it."""
