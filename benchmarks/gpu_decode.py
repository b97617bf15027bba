"""Decode attention on a GPU, one layer of Llama-3.1-8B (32 heads, 8 KV heads, 128 dimensions): SDPA against Triton.

Every arm is captured as a CUDA graph, so that only the GPU is timed, and all arms run in turns in one process, each
after a write that empties the caches, as between layers. A ratio is the median over rounds of that round's pair, taken
against the faster of the two SDPA arms: with grouped queries as PyTorch expands them, and with the four queries of a
KV head folded into rows. Bytes are those of the stored keys and values with scales and zeros; a share is of the copy
bandwidth measured in the same process. ``error`` is the largest difference from fp32 attention on the same stored
values, in units of the largest output, for the first sequence of the batch. Queries come in the latents of a head, and
outputs stay there, but for keys in bands: of those, queries are taken into the latents for every block of tokens, in
matrix products that are timed and whose bytes are not counted, and fast dimensions are rebuilt.

    python benchmarks/gpu_decode.py --out results/gpu/decode.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from kvbench.codecs.frame import BLOCK, REACH
from kvbench.codecs.kernel_view import Coded
from kvbench.codecs.quantizers.base import Quantizer, Stored
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.errors import KvbenchError
from kvbench.hardware.environment import provenance
from kvbench.hooks.turns import Rotary, Turn
from kvbench.kernels.rebuilding import KeyRotation, RebuiltKeys
from kvbench.kernels.reference import partial_attention
from kvbench.measure.statistics import paired_ratio
from kvbench.measure.turns import turns
from kvbench.storage.files import replace_file

HEADS, KV_HEADS, DIM, THETA = 32, 8, 128, 500_000.0
SCALING = DIM**-0.5
BASELINES = ("sdpa", "sdpa, folded queries")
MIXED = (6,) * 8 + (5,) * 16 + (4,) * 24 + (3,) * 32 + (2,) * 24 + (1,) * 16 + (0,) * 8
"""Bits of a head's components, about 3 on average, as water-filling gives them."""
SPEEDS = [THETA ** (-2 * (dim % (DIM // 2)) / DIM) for dim in range(DIM)]
FAST = tuple(dim for dim, speed in enumerate(SPEEDS) if speed * BLOCK > REACH)
"""Dimensions of a key in bands that are rebuilt."""


@dataclass(frozen=True)
class Arm:
    """One way to attend at one length: milliseconds by round, the bytes it reads and how far off it is."""

    length: int
    name: str
    times: list[float]
    bytes: int
    error: float

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""
        return self.bytes / median(self.times) * 1e3


def stored_bytes(*sides: Mapping[str, Tensor]) -> int:
    """Bytes of all stored tensors."""
    return sum(tensor.nbytes for side in sides for tensor in side.values())


def table(arms: Sequence[Arm], copy_bandwidth: float) -> str:
    """Markdown: by length, how many times faster than the faster baseline, and the share of the copy bandwidth."""
    lines = [
        "| tokens | arm | ms | x SDPA | 95 % | MB | GB/s | share of copy | error |",
        "|---:|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for length in sorted({arm.length for arm in arms}):
        of_length = [arm for arm in arms if arm.length == length]
        strongest = min((arm for arm in of_length if arm.name in BASELINES), key=lambda arm: median(arm.times))
        for arm in of_length:
            ratio = paired_ratio(strongest.times, arm.times)
            interval = "" if ratio.low is None else f"{ratio.low:.2f} to {ratio.high:.2f}"
            lines.append(
                f"| {length} | {arm.name} | {median(arm.times):.3f} | {ratio.ratio:.2f} | {interval} "
                f"| {arm.bytes / 1e6:.0f} | {arm.bandwidth / 1e9:.0f} | {arm.bandwidth / copy_bandwidth:.0%} "
                f"| {arm.error:.0e} |"
            )
    return "\n".join(lines)


def quantizers(device: torch.device) -> dict[str, tuple[Quantizer, int]]:
    """What is stored, and the rank of a head's latents."""
    spread = torch.tensor([2.0**width for width in MIXED], device=device)
    return {
        "int8": (IntegerQuantizer(8, DIM), DIM),
        "int4": (IntegerQuantizer(4, DIM), DIM),
        "int4, groups of 32": (IntegerQuantizer(4, 32), DIM),
        "int2, groups of 64": (IntegerQuantizer(2, 64), DIM),
        "latents of half rank, int8": (IntegerQuantizer(8, DIM), DIM // 2),
        "latents of half rank, int4": (IntegerQuantizer(4, DIM), DIM // 2),
        "latents of 3 bits": (CodebookQuantizer(MIXED, spread / spread.square().mean().sqrt()), DIM),
    }


def encoded(quantizer: Quantizer, batch: int, length: int, rank: int, seed: int, device: torch.device) -> Stored:
    """Normal latents of all KV heads, encoded row by row: fp32 copies of a whole batch would not fit."""
    generator = torch.Generator(device).manual_seed(seed)
    heads = [
        quantizer.encode(torch.randn(1, KV_HEADS, length, rank, generator=generator, device=device))
        for _ in range(batch)
    ]
    return {name: torch.cat([head[name] for head in heads]) for name in heads[0]}


def captured(arm: Callable[[], object]) -> Callable[[], None]:
    """``arm`` as a CUDA graph: what starting kernels costs the CPU is nobody's but Python's."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            arm()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        arm()
    return graph.replay


def raced(arms: Mapping[str, Callable[[], object]], rounds: int, flush: Tensor) -> dict[str, list[float]]:
    """Milliseconds by arm and round, in an order shuffled anew each round, with cold caches."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number, name in turns(list(arms), rounds, warmup=3):
        flush.zero_()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        arms[name]()
        stop.record()
        stop.synchronize()
        if number >= 0:
            times[name].append(start.elapsed_time(stop))
    return times


def copy_bandwidth(device: torch.device, size: int = 1 << 30) -> float:
    """Bytes per second, read and written, of copying 1 GiB."""
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    times = raced({"copy": lambda: target.copy_(source)}, 20, torch.empty(1, device=device))
    return 2 * size / median(times["copy"]) * 1e3


def difference(actual: Tensor, query: Tensor, keys: Tensor, values: Tensor) -> float:
    """Largest difference of the first row of ``actual`` from fp32 attention, in units of the largest output."""
    whole = query[:1].float().flatten(1, 2).unsqueeze(2)
    expected = partial_attention(whole, keys[:1].float(), values[:1].float(), SCALING).output.flatten()
    return float((actual[:1].float().flatten() - expected).abs().max() / expected.abs().max())


@dataclass(frozen=True)
class Entry:
    """An arm before the race."""

    attend: Callable[[], object]
    bytes: int
    error: float


def exact_entries(batch: int, length: int, device: torch.device) -> dict[str, Entry]:
    """bf16 keys and values: both baselines and the Triton kernel."""
    from kvbench.kernels.triton.exact import triton_exact_decode

    query, keys, values = (
        torch.randn(batch, KV_HEADS, count, DIM, device=device, dtype=torch.bfloat16)
        for count in (HEADS // KV_HEADS, length, length)
    )
    heads, sdpa = query.view(batch, HEADS, 1, DIM), functional.scaled_dot_product_attention
    arms: dict[str, Callable[[], Tensor]] = {
        BASELINES[0]: lambda: sdpa(heads, keys, values, scale=SCALING, enable_gqa=True),
        BASELINES[1]: lambda: sdpa(query, keys, values, scale=SCALING),
        "bf16, Triton": lambda: triton_exact_decode(query, keys, values, SCALING).output,
    }
    size = keys.nbytes + values.nbytes
    return {name: Entry(captured(arm), size, difference(arm(), query, keys, values)) for name, arm in arms.items()}


class Coding:
    """Keys and values of one stored form: their ``bytes``, ``coded`` for kernels, and those of the ``first`` sequence.

    ``query`` is one for latents.
    """

    def __init__(self, quantizer: Quantizer, rank: int, batch: int, length: int, device: torch.device) -> None:
        sides = [encoded(quantizer, batch, length, rank, seed, device) for seed in (0, 1)]
        self.bytes = stored_bytes(*sides)
        self.coded: list[Coded] = [quantizer.coded(side) for side in sides]  # type: ignore[attr-defined]
        self.first = [quantizer.decode({name: tensor[:1] for name, tensor in side.items()}) for side in sides]
        self.query = torch.randn(batch, KV_HEADS, HEADS // KV_HEADS, rank, device=device, dtype=torch.bfloat16)


def coded_entry(coding: Coding, length: int) -> Entry:
    """One stored form, read by the Triton kernel."""
    from kvbench.kernels.triton.coded import triton_coded_attention

    keys, values = coding.coded

    def arm() -> Tensor:
        return triton_coded_attention(coding.query, keys, values, length, SCALING).output

    return Entry(captured(arm), coding.bytes, difference(arm(), coding.query, *coding.first))


def bands_entry(coding: Coding, length: int) -> Entry:
    """Keys that are latents of keys in bands, each head's in a basis of its own."""
    from kvbench.kernels.triton.coded import CodedAttention

    query, (keys, values), (latents, first_values) = coding.query, coding.coded, coding.first
    basis = torch.linalg.qr(torch.randn(KV_HEADS, DIM, DIM, device=query.device)).Q
    mean = torch.randn(KV_HEADS, 1, DIM, device=query.device)
    rotation = key_rotation(length, query.device)
    told = RebuiltKeys(keys, basis.unsqueeze(2), mean, rotation.keys.turn, FAST, BLOCK)
    shape = query.shape[0], query.shape[1], query.shape[2], DIM
    attention = CodedAttention(shape, keys, values, length, SCALING, rebuilt=told)

    def arm() -> Tensor:
        return attention(query, None, rotation).output

    first_keys = out_of_bands(latents @ basis + mean, rotation.keys)
    return Entry(captured(arm), coding.bytes, difference(arm(), query, first_keys, first_values))


def key_rotation(length: int, device: torch.device) -> KeyRotation:
    """RoPE of all tokens and of the first of every block."""
    half, positions = DIM // 2, torch.arange(length, dtype=torch.int32, device=device)[None, None]
    turn = Turn(tuple((dim + half) % DIM for dim in range(DIM)), (-1.0,) * half + (1.0,) * half)
    angles = torch.arange(length, device=device)[:, None] * torch.tensor(SPEEDS, device=device)
    tables = angles.cos(), angles.sin()
    return KeyRotation(Rotary(turn, *tables, positions), Rotary(turn, *tables, positions[..., ::BLOCK]))


def out_of_bands(keys: Tensor, rotary: Rotary) -> Tensor:
    """``keys`` (1, heads, tokens, DIM) turned to their positions: all but FAST dimensions to those of their blocks."""
    tokens = rotary.positions.flatten().long()[:, None]
    fast = torch.tensor([dim in FAST for dim in range(DIM)], device=keys.device)
    positions = torch.where(fast, tokens, tokens // BLOCK * BLOCK)  # (tokens, DIM)
    partners = keys[..., list(rotary.turn.partners)] * torch.tensor(rotary.turn.signs, device=keys.device)
    return keys * rotary.cos.gather(0, positions) + partners * rotary.sin.gather(0, positions)


def measured(batch: int, length: int, rounds: int, device: torch.device, flush: Tensor) -> list[Arm]:
    """All arms at one length, in turns."""
    entries = exact_entries(batch, length, device)
    for name, (quantizer, rank) in quantizers(device).items():
        entries[name] = coded_entry(Coding(quantizer, rank, batch, length, device), length)
    coding = Coding(*quantizers(device)["latents of 3 bits"], batch, length, device)
    entries["latents of 3 bits, keys in bands"] = bands_entry(coding, length)
    times = raced({name: entry.attend for name, entry in entries.items()}, rounds, flush)
    return [Arm(length, name, times[name], entry.bytes, entry.error) for name, entry in entries.items()]


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[8192, 16384, 32768], metavar="TOKENS",
        help="tokens in the cache, multiples of 8 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=16, help="sequences decoded at once (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=50, help="times each arm is timed (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON with all times, the device and the command; a new file")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON. Exit codes: 0 done, 2 not possible."""
    options, started = arguments(given), datetime.now(UTC)
    if not torch.cuda.is_available():
        print("gpu_decode: no CUDA device here, nothing measured; run it on a machine with a GPU", file=sys.stderr)
        return 2
    if options.out is not None and options.out.exists():
        print(f"gpu_decode: {options.out} exists and is not overwritten; name another file", file=sys.stderr)
        return 2
    if any(length < 8 or length % 8 for length in options.lengths):
        print(f"gpu_decode: lengths are multiples of 8, got {options.lengths}", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    flush, speed = torch.empty(1 << 28, dtype=torch.uint8, device=device), copy_bandwidth(device)
    arms = []
    for length in options.lengths:
        arms += measured(options.batch, length, options.rounds, device, flush)
    print(f"{torch.cuda.get_device_name(device)}, batch {options.batch}, copies {speed / 1e9:.0f} GB/s\n")
    print(table(arms, speed))
    if options.out is not None:
        report = {
            "provenance": provenance("cuda", started),
            "options": vars(options),
            "geometry": {"heads": HEADS, "kv_heads": KV_HEADS, "dim": DIM, "batch": options.batch},
            "copy_bandwidth": speed,
            "arms": [asdict(arm) | {"bandwidth": arm.bandwidth} for arm in arms],
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(options.out, json.dumps(report, indent=1, default=str).encode())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KvbenchError as error:
        sys.exit(f"gpu_decode: {error}")
