"""What the Triton kernels must do, for :mod:`test_triton_kernels` to run: on a GPU, or under Triton's interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvbench.codecs.kernel_view import BlockAffine, Coded
from kvbench.codecs.quantizers.base import Quantizer
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.gaussian import GaussianQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.kernels.reference import Partial, partial_attention
from kvbench.kernels.triton import splits as triton_splits
from kvbench.kernels.triton.coded import readable, triton_coded_attention
from kvbench.kernels.triton.exact import triton_exact_decode
from kvbench.kernels.triton.sides import side_readable
from kvbench.kernels.triton.unpack_plan import plan

SCALING = 0.11
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALVES = [torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 2e-3}
"""Of the largest output. Queries are taken as they are, so bf16 ones lose nothing further."""

few = settings(deadline=None, max_examples=4)


def reference(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Partial:
    batch, groups, rows, rank = query.shape
    whole = query.double().reshape(batch, groups * rows, 1, rank)
    return partial_attention(whole, keys.double(), values.double(), SCALING, mask)


def assert_close(actual: Partial, expected: Partial, tolerance: float, least: float = 1e-6) -> None:
    """``least``: how large outputs are when they do not happen to cancel."""
    assert actual.output.dtype == actual.lse.dtype == torch.float32
    scale = expected.output.abs().max().clamp_min(least)
    assert (actual.output.reshape(expected.output.shape) - expected.output).abs().max() <= tolerance * scale
    assert (actual.lse.reshape(expected.lse.shape) - expected.lse).abs().max() <= max(tolerance, 1e-5)


def random_mask(batch: int, groups: int, tokens: int) -> Tensor:
    mask = torch.rand(batch, groups, 1, tokens, device=DEVICE) > 0.4
    mask[..., 0] = True
    return mask


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 5)),
    st.integers(1, 200),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["none", "one", "each"]),
)
@few
def test_exact_decode(shape: tuple[int, int, int], tokens: int, rank: int, width: int, masked: str) -> None:
    torch.manual_seed(tokens)
    batch, groups = shape[:2]
    query, keys = normal(*shape, rank), normal(batch, groups, tokens + 3, rank)[:, :, :tokens]
    values = normal(batch, groups, tokens + 5, width)[:, :, 2 : tokens + 2]
    mask = None if masked == "none" else random_mask(batch, groups if masked == "each" else 1, tokens)
    assert_close(triton_exact_decode(query, keys, values, SCALING, mask), reference(query, keys, values, mask), 5e-6)


@pytest.mark.parametrize("dtype", HALVES)
def test_exact_decode_in_16_bit(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        pytest.skip(
            "NOT TESTED without a GPU: Triton's interpreter multiplies the bits of bf16 as if they were integers"
        )
    query, keys, values = (normal(2, 2, count, 64, dtype=dtype) for count in (4, 150, 150))
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3
    assert_close(triton_exact_decode(query, keys, values, SCALING), reference(query, keys, values, None), tolerance)


def stored(quantizer: Quantizer, latents: Tensor, room: int) -> tuple[Coded, Tensor]:
    """The codes as views into buffers with room for more, as a cache holds them, and their values."""
    encoded = quantizer.encode(latents)
    views = {}
    for name, tensor in encoded.items():
        shape = (*tensor.shape[:2], tensor.shape[2] + room, *tensor.shape[3:])
        views[name] = torch.full(shape, 99, device=DEVICE).to(tensor.dtype)[:, :, : tensor.shape[2]]
        views[name].copy_(tensor)
    coded = quantizer.coded(views)  # type: ignore[attr-defined]
    assert isinstance(coded, Coded) and side_readable(coded)
    return coded, quantizer.decode(encoded)


def check(
    keys: Quantizer,
    values: Quantizer,
    ranks: tuple[int, int],
    tokens: int,
    shape: tuple[int, int, int] = (1, 2, 3),
    masked: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:
    torch.manual_seed(tokens + sum(ranks))
    batch, groups, _ = shape
    query, whole = normal(*shape, ranks[0], dtype=dtype), -(-tokens // 8) * 8
    coded_keys, key_states = stored(keys, normal(batch, groups, whole, ranks[0]), 8)
    coded_values, value_states = stored(values, normal(batch, groups, whole, ranks[1]), 16)
    mask = random_mask(batch, 1, tokens) if masked else None
    actual = triton_coded_attention(query, coded_keys, coded_values, tokens, SCALING, mask)
    expected = reference(query, key_states[:, :, :tokens], value_states[:, :, :tokens], mask)
    assert_close(actual, expected, TOLERANCE[dtype], float(value_states.abs().max()) / (8 * tokens) ** 0.5)


@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_of_every_width(bits: int) -> None:
    check(IntegerQuantizer(bits, 128), IntegerQuantizer(9 - bits, 128), (32, 32), 101)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_components_with_bytes_of_their_own(bits: int) -> None:
    check(IntegerQuantizer(bits, 128), IntegerQuantizer(bits, 128), (23, 3), 45, masked=True)


@given(
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 20)),
    st.integers(1, 300),
    st.sampled_from([2, 3, 4, 8]),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.booleans(),
)
@few
def test_any_shape(shape: tuple[int, int, int], tokens: int, bits: int, ranks: tuple[int, int], masked: bool) -> None:
    check(IntegerQuantizer(bits, 128), IntegerQuantizer(4, 128), ranks, tokens, shape, masked)


@pytest.mark.parametrize(("group", "rank"), [(16, 40), (24, 50)])
def test_channel_groups_with_scales_of_their_own(group: int, rank: int) -> None:
    check(IntegerQuantizer(4, group), IntegerQuantizer(3, group), (rank, rank), 77, masked=True)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bits", [4, 8])
def test_16_bit_queries(dtype: torch.dtype, bits: int) -> None:
    check(IntegerQuantizer(bits, 64), IntegerQuantizer(bits, 64), (64, 64), 300, dtype=dtype)


def codebook(widths: Sequence[int]) -> CodebookQuantizer:
    return CodebookQuantizer(tuple(widths), torch.linspace(2.0, 0.1, len(widths), device=DEVICE))


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=40),
    st.lists(st.integers(0, 8), min_size=1, max_size=40),
    st.integers(1, 150),
)
@few
def test_mixed_widths_with_level_tables(keys: list[int], values: list[int], tokens: int) -> None:
    check(codebook(sorted(keys, reverse=True)), codebook(values), (len(keys), len(values)), tokens)


def test_mixed_widths_in_whole_words() -> None:
    widths = [width for width in (8, 6, 5, 4, 3, 2, 1, 0) for _ in range(4)]
    check(codebook(widths), codebook(widths), (32, 32), 120, masked=True)


@pytest.mark.parametrize("bits", [3, 4])
def test_codes_with_a_norm_per_token(bits: int) -> None:
    quantizer = GaussianQuantizer.on(DEVICE, bits)
    check(quantizer, quantizer, (48, 48), 90, masked=True)


def test_components_without_bits_are_zero() -> None:
    nothing, something = codebook([0] * 20), codebook([3] * 4 + [0] * 16)
    check(nothing, something, (20, 20), 60)
    check(something, nothing, (20, 20), 60)


@pytest.mark.parametrize(("bits", "dtype"), [(2, torch.float32), (4, torch.float16), (8, torch.float32)])
def test_a_scale_per_channel_and_block_of_tokens(bits: int, dtype: torch.dtype) -> None:
    check(IntegerQuantizer(bits, 32, "token"), IntegerQuantizer(bits, 32), (48, 64), 288, masked=True, dtype=dtype)


@pytest.mark.parametrize(
    ("affine", "size"), [("levels", 8), ("integers", 32), ("channel groups", 96), ("levels", 96), ("integers", 256)]
)
def test_any_codes_take_a_scale_per_block(affine: str, size: int) -> None:
    """Level tables, scales per token and channel groups, all of it times a scale per component and block."""
    torch.manual_seed(size)
    batch, groups, rank, tokens = 1, 2, 48, 296
    blocks = -(-tokens // size)
    inner = {
        "levels": codebook(sorted([6, 3, 5] * 16)),
        "integers": IntegerQuantizer(5, 128),
        "channel groups": IntegerQuantizer(4, 16),
    }[affine]
    coded, states = stored(inner, normal(batch, groups, tokens, rank), 0)
    scale, zero = (normal(batch, groups, blocks, rank, dtype=torch.float16) for _ in range(2))
    keys = replace(coded, blocks=BlockAffine(size, scale, zero))
    scales, zeros = (each.repeat_interleave(size, 2)[:, :, :tokens].double() for each in (scale, zero))
    expected_keys = states.double() * scales + zeros
    values, value_states = stored(IntegerQuantizer(8, 32), 1 + normal(batch, groups, tokens, 64), 8)
    query = normal(batch, groups, 3, rank)
    assert readable(keys, values) and not readable(values, keys), "sums of values take no scale per block"
    actual = triton_coded_attention(query, keys, values, tokens, SCALING)
    assert_close(actual, reference(query, expected_keys, value_states, None), TOLERANCE[torch.float32])


@pytest.mark.parametrize("multiprocessors", [1, 40])
def test_splits_change_nothing(multiprocessors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_splits, "_multiprocessors", lambda device: multiprocessors)
    check(IntegerQuantizer(4, 32), IntegerQuantizer(4, 32), (32, 32), 605, (1, 1, 3))
    check(IntegerQuantizer(4, 32, "token"), IntegerQuantizer(4, 32), (32, 32), 608, (1, 1, 3))
    query, states = normal(1, 1, 3, 32), normal(1, 1, 333, 32)
    assert_close(triton_exact_decode(query, states, states, SCALING), reference(query, states, states, None), 5e-6)


def test_long_tails_keep_their_weight() -> None:
    """Weights of 1e-7 each beside one of 1, and tiny scales: fp16 operands alone would drop them all."""
    query, keys = torch.full((1, 1, 1, 16), 1.0, device=DEVICE), torch.zeros(1, 1, 2048, 16, device=DEVICE)
    keys[:, :, 0] = 16.0 / 16 / SCALING
    quantizer = IntegerQuantizer(8, 16)
    coded_keys, key_states = stored(quantizer, keys + normal(1, 1, 2048, 16) * 0.01, 0)
    coded, states = stored(quantizer, (normal(1, 1, 2048, 16).abs() + 1) * 1e-3, 0)
    actual = triton_coded_attention(query.half(), coded_keys, coded, 2048, SCALING)
    assert_close(actual, reference(query, key_states, states, None), TOLERANCE[torch.float16])


def test_a_row_that_sees_nothing_weighs_nothing() -> None:
    query, states = normal(2, 1, 2, 16), normal(2, 1, 72, 16)
    mask = torch.ones(2, 1, 1, 72, dtype=torch.bool, device=DEVICE)
    mask[1] = False
    coded, _ = stored(IntegerQuantizer(8, 16), states, 0)
    for actual in (
        triton_exact_decode(query, states, states, SCALING, mask),
        triton_coded_attention(query, coded, coded, 72, SCALING, mask),
    ):
        assert actual.output.isfinite().all()
        assert (actual.lse[1] < -1e29).all() and (actual.lse[0] > -1e3).all()


def test_unreadable_codes_are_named_so() -> None:
    encoded = IntegerQuantizer(4, 16).encode(normal(1, 1, 8, 32))
    coded = IntegerQuantizer(4, 16).coded(encoded)
    assert coded is not None and coded.scale is not None
    assert side_readable(coded)
    assert not side_readable(Coded(coded.codes, coded.widths, coded.channel, None, coded.scale.float(), coded.zero))
    assert not side_readable(Coded(coded.codes, (4,) * 4096, 64, None, None, None)), "too many blocks to unroll"


@given(st.lists(st.integers(0, 8), min_size=1, max_size=200), st.integers(1, 64))
@settings(deadline=None, max_examples=200)
def test_a_plan_reads_every_component_once(widths: list[int], channel: int) -> None:
    channels = plan(tuple(widths), channel, True)
    assert len(channels) == -(-len(widths) // channel)
    seen = []
    for index, group in enumerate(channels):
        for block in group.blocks:
            assert block.count <= block.size <= 128 and block.size & (block.size - 1) == 0
            assert block.first // channel == (block.first + block.count - 1) // channel == index
            seen += range(block.first, block.first + block.count)
    assert len(set(seen)) == len(seen)
    assert {component for component, width in enumerate(widths) if width} <= set(seen)
