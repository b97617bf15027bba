"""What the Triton kernels must do with keys stored before RoPE, or in bands, for :mod:`test_triton_kernels` to run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from driving import calibrated, feed, left_padding, subject, token_ids, worst
from rebuilding_cases import RANK, SCALING, Case, by_head, counted, expanded, random_mask, rotated, table, turn
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from triton_cases import DEVICE, TOLERANCE, assert_close

from kvbench.cache.attach import CompressedModel
from kvbench.cache.spans import Spans
from kvbench.codecs.kernel_view import Coded, kernel_view
from kvbench.codecs.quantizers.base import Quantizer
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.compressors.compressor import parse
from kvbench.hooks.turns import Rotary
from kvbench.kernels import choice
from kvbench.kernels.reading import Reading
from kvbench.kernels.rebuilding import KeyRotation, RebuiltKeys
from kvbench.kernels.reference import partial_attention
from kvbench.kernels.triton import splits as triton_splits
from kvbench.kernels.triton.coded import CodedAttention, readable
from kvbench.kernels.triton.rebuilt import rebuilds

INT4, INT8 = IntegerQuantizer(4, 128), IntegerQuantizer(8, 128)
ONE = Case(batch=1, tokens=136, heads=2)
"""A tile and a part of the next: the interpreter takes its time."""


def latents(case: Case, quantizer: Quantizer, rank: int = RANK) -> tuple[Coded, Tensor]:
    """Codes on the device, and what they stand for."""
    stored = quantizer.encode(torch.randn(case.batch, case.groups, case.tokens, rank))
    coded = kernel_view(quantizer, stored)
    assert isinstance(coded, Coded)
    levels = None if coded.levels is None else {width: each.to(DEVICE) for width, each in coded.levels.items()}
    tensors = {name: getattr(coded, name) for name in ("codes", "scale", "zero", "component")}
    moved = {name: None if tensor is None else tensor.to(DEVICE) for name, tensor in tensors.items()}
    coded = replace(coded, levels=levels, **moved)
    assert readable(coded, coded) and rebuilds(coded, 0) and rebuilds(coded, 32)
    return coded, quantizer.decode(stored)


def in_bands(states: Tensor, case: Case, rotary: Rotary, dims: tuple[int, ...], block: int) -> Tensor:
    """Keys of which ``dims`` are turned to their positions, the others to those of the first token of their block."""
    first = torch.arange(case.tokens) // block * block
    keys = rotated(states, case, replace(rotary, positions=rotary.positions[..., first]))
    keys[..., list(dims)] = rotated(states, case, rotary)[..., list(dims)]
    return keys


def check(
    case: Case,
    dims: tuple[int, ...] | None = None,
    block: int = 0,
    positions: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """In bands with a ``block``: of ``dims`` that are rebuilt and others that are absorbed."""
    torch.manual_seed(case.tokens + case.dim)
    keys, key_latents = latents(case, case.keys)
    values, value_latents = (keys, key_latents) if case.values is None else latents(case, case.values)
    heads = case.heads // case.groups
    decoder = torch.randn(case.groups, RANK, heads, case.dim) / RANK**0.5
    mean = torch.randn(case.groups, heads, case.dim)
    rotary = Rotary(turn(case), *table(case), counted(case) if positions is None else positions)
    query, mask = torch.randn(case.batch, case.heads * case.queries, 1, case.dim).to(dtype), random_mask(case)

    turns = rotary.turn if case.rotary else None
    rebuilt = RebuiltKeys(keys, decoder.to(DEVICE), mean.to(DEVICE), turns, dims, block)
    shape = case.batch, case.groups, heads * case.queries, case.dim
    attention = CodedAttention(shape, keys if block else None, values, case.tokens, SCALING, rebuilt=rebuilt)
    there = Rotary(rotary.turn, *(each.to(DEVICE) for each in (rotary.cos, rotary.sin, rotary.positions)))
    references = replace(there, positions=there.positions[..., ::block]) if block else None
    rotation = KeyRotation(there, references) if case.rotary else None
    actual = attention(query.to(DEVICE), None if mask is None else mask.to(DEVICE), rotation)

    whole = expanded(key_latents, decoder, mean)
    whole = in_bands(whole, case, rotary, dims or (), block) if block else rotated(whole, case, rotary)
    value_states = value_latents.double().repeat_interleave(heads, 1)
    expected = partial_attention(query.double(), whole, value_states, SCALING, by_head(mask, case))
    expected = replace(expected, output=expected.output.to(DEVICE), lse=expected.lse.to(DEVICE))
    assert_close(actual, expected, TOLERANCE[dtype])
    assert actual.output.shape[:-1] == actual.lse.shape == query.shape[:-1]


def widths(*counts: tuple[int, int]) -> CodebookQuantizer:
    """A codebook of (width, components)."""
    each = [width for width, count in counts for _ in range(count)]
    return CodebookQuantizer(tuple(each), torch.linspace(2.0, 0.1, len(each)))


CASES = {
    "joint": ONE,
    "split": replace(ONE, values=INT4),
    "per head": replace(ONE, groups=2, queries=1),
    "head groups": replace(ONE, groups=2, heads=4, batch=2, masked="each"),
    "many queries": replace(ONE, queries=37, dim=32, rotary=32),
    "one token group": replace(ONE, tokens=8),
    "one mask": replace(ONE, masked="one"),
    "partial rotary": replace(ONE, rotary=16),
    "no rotation": replace(ONE, rotary=0),
    "interleaved": replace(ONE, interleaved=True),
    "YaRN's factor": replace(ONE, factor=1.3),
    "wide heads": replace(ONE, heads=1, dim=160, rotary=144),
    "dims that fill no block": replace(ONE, dim=50, rotary=20),
    "int8, one scale": replace(ONE, keys=INT8),
    "int4, scales by channel group": replace(ONE, keys=IntegerQuantizer(4, 32)),
    "int3, scales by small groups": replace(ONE, keys=IntegerQuantizer(3, 24), heads=1),
    "levels of one width": replace(ONE, keys=widths((3, RANK)), heads=1),
    "components without bits": replace(ONE, keys=widths((4, 80), (0, 16))),
}


@pytest.mark.parametrize("name", CASES)
def test_rebuilt_keys(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_queries(dtype: torch.dtype) -> None:
    check(replace(ONE, keys=INT4), dtype=dtype)
    check(replace(ONE, heads=1), (1, 5, 33, 37), 64, dtype=dtype)


@pytest.mark.parametrize("rows", [(2, 2), (2, 1), (1, 1)])
def test_any_positions(rows: tuple[int, int]) -> None:
    """Those of a selector's entries, of each row and group of heads or of all; padding may be outside of the tables."""
    case = replace(ONE, tokens=72, groups=2, batch=2, queries=1, keys=INT8, dim=32, rotary=32)
    positions = torch.randint(1200, (*rows, case.tokens), generator=torch.Generator().manual_seed(0)).int()
    positions[..., :5] = -3
    check(case, positions=positions)
    check(case, (1, 5, 17, 21), 40, positions)


@pytest.mark.parametrize("block", [32, 48, 64, 128, 256])
def test_bands(block: int) -> None:
    check(replace(ONE, tokens=304), (0, 1, 2, 32, 33, 34), block)


BANDS = {
    "split": (replace(ONE, values=INT4, keys=INT4, groups=2), (0, 7, 32, 39)),
    "interleaved, with a mask": (replace(ONE, interleaved=True, masked="one"), (0, 1, 6, 7)),
    "masks by group": (replace(ONE, groups=2, batch=2, masked="each"), (3, 35)),
    "partial rotary": (replace(ONE, rotary=32), (0, 1, 16, 17)),
    "nothing fast": (ONE, ()),
    "all fast": (ONE, tuple(range(64))),
    "many queries": (replace(ONE, queries=20, dim=32, rotary=32), (0, 16)),
}


@pytest.mark.parametrize("name", BANDS)
def test_bands_of(name: str) -> None:
    check(*BANDS[name], 64)


@pytest.mark.parametrize("multiprocessors", [1, 40])
def test_splits_change_nothing(multiprocessors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_splits, "_multiprocessors", lambda device: multiprocessors)
    case = replace(ONE, tokens=648, heads=1, dim=32, rotary=32, keys=INT8)
    check(case)
    check(case, (0, 16), 32)


@pytest.fixture
def triton_everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels for GPUs on the CPU, too."""
    monkeypatch.setitem(choice._DEVICES, "cpu", choice._cuda)
    choice._load.cache_clear()
    yield
    choice._load.cache_clear()


TOKENS = 150


def decoded(spec: str, reading: Reading, padding: tuple[int, int]) -> tuple[Tensor, str]:
    """Logits of a step, and what attended."""
    one, ids = subject("llama", torch.float32), token_ids(2, TOKENS)
    mask = left_padding(2, TOKENS, padding) if any(padding) else None
    plan = replace(parse(spec), spans=Spans(sinks=2, recent=8, block=8)).fit(one.geometry, calibrated(one))
    with CompressedModel(one.model, plan, one.geometry, reading) as compressed, torch.no_grad():
        cache = compressed.new_cache()
        logits = feed(one.model, cache, ids, [TOKENS - 1, 1], mask)
        return logits[:, -1:], cache.attended_by


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the model of this test is on the CPU")
@pytest.mark.parametrize(
    ("spec", "padding", "way"),
    [
        ("ftc:bits=4,frame=bands,rope_block=64", (70, 3), "triton bands"),
        ("ftc:bits=4,frame=bands,rope_block=128,basis=joint", (0, 0), "triton bands"),
        ("kvtc:bits=4", (0, 9), "triton rebuilt"),
        ("kivi:bits=4,group=32", (0, 0), "triton int"),
    ],
)
def test_a_cache_is_read_by_them(spec: str, padding: tuple[int, int], way: str, triton_everywhere: None) -> None:
    read, by = decoded(spec, Reading(), padding)
    expected, slow = decoded(spec, Reading("reference"), padding)
    assert by == way and slow.startswith("torch")
    assert worst(read, expected) < 1e-3


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the model of this test is on the CPU")
def test_what_a_body_no_longer_stores_is_freed(triton_everywhere: None) -> None:
    """These kernels know tensors, not addresses: kept from step to step, they would keep every outgrown buffer."""
    one, ids = subject("llama", torch.float32), token_ids(1, 40)
    plan = replace(parse("kvtc:bits=4"), spans=Spans(sinks=2, recent=8, block=8)).fit(one.geometry, calibrated(one))
    with CompressedModel(one.model, plan, one.geometry) as compressed, torch.no_grad():
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [38, 1, 1])
        assert cache.attended_by == "triton rebuilt"
        buffers = [each.data for each in cache.layers[0].body.stored.values()]
        storages = [StorageWeakRef(data.untyped_storage()) for data in buffers]
        del buffers
        cache.layers[0].body.truncate(0)
        assert all(storage.expired() for storage in storages)


def test_the_benchmark_measures_bands_that_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import gpu_decode

    monkeypatch.setattr(gpu_decode, "HEADS", 4)
    monkeypatch.setattr(gpu_decode, "KV_HEADS", 1)
    monkeypatch.setattr(gpu_decode, "captured", lambda arm: arm)
    coding = gpu_decode.Coding(*gpu_decode.quantizers(DEVICE)["latents of 3 bits"], 1, 264, DEVICE)
    assert gpu_decode.bands_entry(coding, 264).error < 5e-3
