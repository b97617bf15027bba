"""Columns of the memory part: bytes that are allocated, predicted and claimed, and peaks."""

from __future__ import annotations

from collections.abc import Callable

from kvbench.measure.parts.memory import MemoryResult
from kvbench.report.columns.column import Cell, Column, mebibyte_cell, plain, two_decimals
from kvbench.runs.records import Record


def _memory(show: Callable[[MemoryResult], Cell | None]) -> Callable[[Record], Cell | None]:
    return lambda record: show(record.memory) if record.memory else None


def body_bits(record: Record) -> float | None:
    """Bits per element of the compressed body, from whichever measurement knows them."""
    known = (
        record.memory.body_bits_per_element if record.memory else None,
        record.quality.body_bits if record.quality else None,
    )
    return next((value for value in known if value is not None), None)


def _break_even(tokens: int | None) -> Cell:
    return Cell("never", None) if tokens is None else Cell(f"{tokens:,}", tokens)


def _layers(memory: MemoryResult) -> Cell | None:
    """Only where some layers are not compressed."""
    linear = (memory.kept_layers or {}).get("linear_attention", 0)
    if memory.compressed_layers is None or memory.layers is None or memory.compressed_layers == memory.layers + linear:
        return None
    share = memory.compressed_share or 0
    return Cell(f"{memory.compressed_layers} of {memory.layers + linear}, {share:.0%}", share)


def _weights(memory: MemoryResult) -> Cell | None:
    """Only of models with experts: elsewhere weights say nothing about a cache."""
    if not memory.expert_bytes or memory.weight_bytes is None:
        return None
    share = memory.expert_bytes / memory.weight_bytes
    return Cell(f"{memory.weight_bytes / 2**20:,.0f}, {share:.0%}", memory.weight_bytes)


def _parts(memory: MemoryResult) -> Cell | None:
    """Shares of the allocated bytes, in per cent."""
    stored = memory.allocated
    if not stored.total:
        return None
    others = stored.positions + stored.slack + stored.workspace
    shares = (100 * part / stored.total for part in (stored.payload, stored.scales, stored.exact, others))
    return Cell("/".join(f"{share:.0f}" for share in shares), None)


BODY_BITS = Column(
    "body\nbits",
    "Bits per element of the compressed body alone, scales and indices included: what remains of the bits when the "
    "context is so long that the exact first and recent tokens no longer weigh.",
    lambda record: plain(body_bits(record), two_decimals),
)

LEGEND = "ratio: 16-bit K and V ÷ all allocated bytes"

COLUMNS = (
    Column(
        "bits\nasked",
        "What the compressor was solved for, in bits per element. Where it cannot take that, the row is its nearest "
        "size, and a remark under the table says so.",
        lambda record: Cell(", ".join(f"{bits:g}" for bits in record.solved_for), None) if record.solved_for else None,
        summary=True,
        importance=3,
    ),
    Column(
        "bits",
        "Bits per element of K and V: all bytes that the cache has allocated, times 8, over the number of K and V "
        "elements that an uncompressed cache would hold. Scales, indices, exact tokens, unused capacity and workspace"
        " count.",
        _memory(lambda memory: plain(memory.bits_per_element, two_decimals)),
        summary=True,
    ),
    Column(
        "bits +\nbases",
        "The same with the bytes of projection bases and codebooks, which are held once for all caches of the model: "
        "what this batch at this length takes in all. More sequences, or longer ones, bring it down to the bits.",
        _memory(lambda memory: plain(memory.bits_with_bases, two_decimals)),
        summary=True,
        importance=7,
    ),
    BODY_BITS,
    Column(
        "layers\ncompressed",
        "Layers that are compressed, of all that keep a state, and the share that is theirs of an uncompressed cache's "
        "keys and values at this length. The others keep a sliding window, are of linear attention, or are left exact "
        "by the method.",
        _memory(_layers),
        summary=True,
        importance=4,
    ),
    Column(
        "ratio\nclaimed",
        "The ratio that the method's own description leads to, usually without scales, exact tokens and workspace.",
        _memory(lambda memory: plain(memory.ratio_claimed, two_decimals)),
        importance=18,
    ),
    Column(
        "ratio\npredicted",
        "The same ratio from arithmetic alone, before anything is allocated. Where predicted and allocated bytes "
        "differ by more than 1 % the row is flagged.",
        _memory(lambda memory: plain(memory.ratio_predicted, two_decimals)),
    ),
    Column(
        "ratio",
        "Bytes of 16-bit K and V over allocated bytes, whatever dtype the run used: a float32 run without compression"
        " has ratio 0.5. Above 1 saves memory against a 16-bit cache.",
        _memory(lambda memory: plain(memory.ratio_allocated, two_decimals)),
        summary=True,
        importance=6,
    ),
    Column(
        "cache\nMiB",
        "What the cache's tensor storages hold after the workload's tokens, all layers and sequences, each storage "
        "once. 1 MiB is 1,048,576 bytes.",
        _memory(lambda memory: mebibyte_cell(memory.allocated.total)),
        summary=True,
        importance=2,
    ),
    Column(
        "cache MiB\nat most",
        "The most that the cache held from the prompt's end through the workload's decoded tokens: blocks of tokens "
        "leave the exact window together, so its size rises and falls.",
        _memory(lambda memory: mebibyte_cell(memory.largest_bytes)),
        importance=15,
    ),
    Column(
        "% payload/\nscales/exact/\nother",
        "Shares of the allocated bytes: codes or latents; scales and indices; the exact first and recent tokens; "
        "positions, unused capacity and workspace.",
        _memory(_parts),
        importance=17,
    ),
    Column(
        "bases\nMiB",
        "Held once for all caches of the model and not part of the cache: projection bases and codebooks.",
        _memory(lambda memory: mebibyte_cell(memory.model_level_bytes)),
        importance=16,
    ),
    Column(
        "pays from\ntokens",
        "The shortest single sequence that, like every longer one, takes fewer bytes compressed, with bases and exact"
        " tokens, than 16-bit K and V would: from arithmetic. “never” where there is none.",
        _memory(lambda memory: _break_even(memory.break_even_tokens)),
        importance=19,
    ),
    Column(
        "peak MiB\nprefill",
        "Highest memory during prefill of the whole prompt at once, above what was in use before it (weights, bases, "
        "runtime): the resident memory of the trial's own process on a CPU, torch's allocator on a GPU.",
        _memory(lambda memory: mebibyte_cell(memory.peak_prefill_bytes)),
        importance=12,
    ),
    Column(
        "peak MiB\nin chunks",
        "The same with the prompt in chunks of the workload's size, each compressed before the next is prefilled. "
        "What compresses only after a whole prompt hardly lowers the peak of its prefill.",
        _memory(lambda memory: mebibyte_cell(memory.peak_prefill_chunked_bytes)),
        importance=13,
    ),
    Column(
        "peak MiB\ndecode",
        "The same during decoding, the cache included.",
        _memory(lambda memory: mebibyte_cell(memory.peak_decode_bytes)),
        importance=14,
    ),
    Column(
        "weights MiB,\nexperts",
        "The model's weights, which the cache stands beside, and the share of routed experts in them.",
        _memory(_weights),
        importance=20,
    ),
)
