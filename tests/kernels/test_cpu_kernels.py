"""The CPU kernels agree with plain torch in fp64 on the values that were stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvbench.codecs.kernel_view import BlockAffine, Coded, kernel_view
from kvbench.codecs.quantizers.base import Quantizer
from kvbench.codecs.quantizers.codebook import CodebookQuantizer
from kvbench.codecs.quantizers.floating import FloatQuantizer
from kvbench.codecs.quantizers.gaussian import GaussianQuantizer
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.kernels.cpu.coded import LatentBasis, coded_attention, readable
from kvbench.kernels.cpu.column_layout import column_layout
from kvbench.kernels.cpu.exact import exact_decode
from kvbench.kernels.cpu.llvm.matrix_ops import has_matrices
from kvbench.kernels.cpu.llvm.unpack_ops import columns_of_a_table
from kvbench.kernels.cpu.work_split import COSTLY, splits_for
from kvbench.kernels.reference import Partial, partial_attention

SCALING = 0.11

shapes = st.tuples(
    st.integers(1, 3),  # batch
    st.integers(1, 3),  # head groups
    st.integers(1, 11),  # query rows of a group
    st.integers(1, 24),  # packing groups of eight tokens
)


def reference(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Partial:
    batch, groups, rows, rank = query.shape
    whole = query.double().reshape(batch, groups * rows, 1, rank)
    return partial_attention(whole, keys.double(), values.double(), SCALING, mask)


def assert_close(actual: Partial, expected: Partial, tolerance: float) -> None:
    scale = expected.output.abs().max().clamp_min(1e-6)
    assert (actual.output.reshape(expected.output.shape) - expected.output).abs().max() <= tolerance * scale
    step = 2**-23 * expected.lse.abs().max()  # of fp32
    assert (actual.lse.reshape(expected.lse.shape) - expected.lse).abs().max() <= max(tolerance, 1e-5, 2 * step)


def random_mask(batch: int, groups: int, tokens: int) -> Tensor:
    mask = torch.rand(batch, groups, 1, tokens) > 0.4
    mask[..., 0] = True
    return mask


@given(shapes, st.integers(1, 130), st.integers(1, 130), st.integers(0, 9), st.sampled_from(["none", "one", "each"]))
@settings(deadline=None, max_examples=80)
def test_exact_decode(shape: Sequence[int], rank: int, width: int, beyond: int, masked: str) -> None:
    batch, groups, rows, eights = shape
    tokens = 8 * eights - min(beyond, 7)
    torch.manual_seed(tokens + rank)
    query, keys = torch.randn(batch, groups, rows, rank), torch.randn(batch, groups, tokens + 3, rank)[:, :, :tokens]
    values = 1 + torch.randn(batch, groups, tokens + 5, width)[:, :, 2 : tokens + 2]
    mask = None if masked == "none" else random_mask(batch, groups if masked == "each" else 1, tokens)
    actual = exact_decode(query, keys, values, SCALING, mask)
    assert_close(actual, reference(query, keys, values, mask), 3e-6)


@given(shapes, st.integers(1, 70), st.integers(1, 70), st.integers(1, 100), st.booleans())
@settings(deadline=None, max_examples=40)
def test_exact_spans_one_after_the_other(shape: Sequence[int], rank: int, width: int, first: int, masked: bool) -> None:
    batch, groups, rows, eights = shape
    torch.manual_seed(first + rank)
    tokens = first + 8 * eights
    query, keys = torch.randn(batch, groups, rows, rank), torch.randn(batch, groups, tokens, rank)
    values = 1 + torch.randn(batch, groups, tokens, width)
    mask = random_mask(batch, groups, tokens) if masked else None
    before = keys[:, :, :first].clone(), values[:, :, :first].clone()
    actual = exact_decode(query, keys[:, :, first:], values[:, :, first:], SCALING, mask, before)
    assert_close(actual, reference(query, keys, values, mask), 3e-6)


stored_dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@given(
    *(shapes, st.integers(1, 130), st.integers(1, 130), st.integers(0, 9), st.integers(0, 70), st.booleans()),
    st.tuples(*[stored_dtypes] * 4),
)
@settings(deadline=None, max_examples=120)
def test_spans_of_any_dtypes_are_read_as_they_lie(
    shape: Sequence[int], rank: int, width: int, beyond: int, first: int, masked: bool, dtypes: Sequence[torch.dtype]
) -> None:
    """Against fp64 on the rounded values: nothing but the storing rounds."""
    batch, groups, rows, eights = shape
    torch.manual_seed(first + rank)
    tokens = 8 * eights - min(beyond, 7)
    query, mask = torch.randn(batch, groups, rows, rank), random_mask(batch, groups, first + tokens) if masked else None
    sizes = ((first, rank), (first, width), (tokens, rank), (tokens, width))
    states = []
    for (count, components), dtype in zip(sizes, dtypes, strict=True):  # views into buffers with room for more
        states.append((1 + torch.randn(batch, groups, count + 3, components)).to(dtype)[:, :, 1 : count + 1])
    before = (states[0], states[1]) if first else None
    actual = exact_decode(query, states[2], states[3], SCALING, mask, before)
    whole = [torch.cat([early.double(), late.double()], 2) for early, late in zip(states[:2], states[2:], strict=True)]
    assert actual.output.dtype == actual.lse.dtype == torch.float32
    assert_close(actual, reference(query, whole[0], whole[1], mask), 5e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rank", [64, 80, 96, 128, 256, 6])
@pytest.mark.parametrize("tokens", [1, 3, 5, 67, 700])
def test_usual_heads_in_16_bit(dtype: torch.dtype, rank: int, tokens: int) -> None:
    torch.manual_seed(rank)
    query, keys, values = torch.randn(2, 1, 4, rank), torch.randn(2, 1, tokens, rank), torch.randn(2, 1, tokens, rank)
    keys, values = keys.to(dtype), (1 + values).to(dtype)
    assert_close(exact_decode(query, keys, values, SCALING), reference(query, keys, values, None), 3e-6)


def test_every_number_of_16_bit_is_widened_as_it_is() -> None:
    """All bits that stand for a finite number, subnormal ones among them, as values that one token alone gives."""
    for dtype in (torch.float16, torch.bfloat16):
        numbers = torch.arange(-(2**15), 2**15).short().view(dtype)
        numbers = numbers[numbers.isfinite()]
        numbers = numbers[: len(numbers) // 64 * 64].view(1, -1, 1, 64)
        output = exact_decode(torch.ones(1, numbers.shape[1], 1, 64), torch.zeros_like(numbers), numbers, 1.0).output
        assert torch.equal(output, numbers.float())


def test_components_that_do_not_lie_side_by_side() -> None:
    torch.manual_seed(0)
    query, states = torch.randn(1, 2, 3, 16), torch.randn(1, 2, 16, 200).transpose(2, 3)
    expected = reference(query, states, states, None)
    for _ in range(20):  # a copy that was given back would be written over
        assert_close(exact_decode(query, states, states, SCALING), expected, 3e-6)
        torch.randn(1, 2, 200, 16)


def stored(quantizer: Quantizer, latents: Tensor, capacity: int) -> tuple[Coded, Tensor]:
    """The codes as views into buffers with room for more, as a cache holds them, and their values."""
    encoded = quantizer.encode(latents)
    views = {}
    for name, tensor in encoded.items():
        entries = tensor.shape[2]
        buffer = torch.full((*tensor.shape[:2], entries + capacity, *tensor.shape[3:]), 99).to(tensor.dtype)
        buffer[:, :, :entries] = tensor
        views[name] = buffer[:, :, :entries]
    coded = kernel_view(quantizer, views)
    assert isinstance(coded, Coded)
    return coded, quantizer.decode(encoded)


def check(shape: Sequence[int], keys: Quantizer, values: Quantizer, ranks: tuple[int, int], masked: bool) -> None:
    batch, groups, rows, eights = shape
    tokens = 8 * eights
    torch.manual_seed(tokens + sum(ranks))
    query = torch.randn(batch, groups, rows, ranks[0])
    coded_keys, key_states = stored(keys, torch.randn(batch, groups, tokens, ranks[0]), 8)
    # Around one: outputs that happen to cancel have no relative error to speak of.
    coded_values, value_states = stored(values, 1 + torch.randn(batch, groups, tokens, ranks[1]), 16)
    mask = random_mask(batch, 1, tokens) if masked else None
    assert readable(coded_keys, coded_values)
    actual = coded_attention(query, coded_keys, coded_values, tokens, SCALING, mask)
    assert actual.output.shape == (batch, groups, rows, ranks[1])
    assert_close(actual, reference(query, key_states, value_states, mask), 1e-3)


@given(
    shapes,
    st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8]),
    st.sampled_from([2, 3, 4, 8]),
    st.integers(1, 100),
    st.integers(1, 100),
    st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_integers_of_any_width_and_rank(
    shape: Sequence[int], key_bits: int, value_bits: int, rank: int, width: int, masked: bool
) -> None:
    check(shape, IntegerQuantizer(key_bits, 128), IntegerQuantizer(value_bits, 128), (rank, width), masked)


@pytest.mark.parametrize("group", [16, 32, 64])
@pytest.mark.parametrize("rank", [64, 96, 80, 72])
def test_channel_groups_with_scales_of_their_own(group: int, rank: int) -> None:
    check((2, 2, 3, 9), IntegerQuantizer(4, group), IntegerQuantizer(3, group), (rank, rank), True)


@pytest.mark.parametrize("scale", [torch.float16, torch.float32])
@pytest.mark.parametrize(("group", "rows"), [(16, 2), (32, 3), (32, 7), (64, 1)])
def test_levels_of_two_bytes_in_channel_groups(group: int, rows: int, scale: torch.dtype) -> None:
    """Values of 8-bit floats lie off the byte grid: their second bytes have scales of channel groups, too."""
    quantizer = FloatQuantizer(torch.float8_e4m3fn, True, group, scale)
    check((2, 2, rows, 9), quantizer, quantizer, (64, 128), True)
    ragged, _ = stored(FloatQuantizer(torch.float8_e4m3fn, True, 48), torch.randn(1, 1, 8, 64), 8)
    assert not readable(ragged, ragged)


@pytest.mark.parametrize("group", [16, 32, 48, 64, 128])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("rank", "rows"), [(64, 3), (80, 1), (128, 7), (72, 2), (5, 4)])
def test_keys_with_a_scale_per_channel_and_block(group: int, bits: int, rank: int, rows: int) -> None:
    for blocks in (1, 2, 5):
        eights = blocks * group // 8  # the last tile is whole or not
        keys, values = IntegerQuantizer(bits, group, "token"), IntegerQuantizer(bits, 32)
        check((2, 3, rows, eights), keys, values, (rank, 64), blocks > 1)


@pytest.mark.parametrize("bits", [2, 4])
def test_keys_whose_channels_differ(bits: int) -> None:
    """In mean and spread by orders of magnitude, as real keys do, which is why scales are kept per channel."""
    torch.manual_seed(bits)
    latents = torch.randn(2, 3, 320, 64) * torch.logspace(-2, 1, 64) + torch.linspace(-8, 8, 64)
    keys, key_states = stored(IntegerQuantizer(bits, 32, "token"), latents, 8)
    values, value_states = stored(IntegerQuantizer(bits, 32), 1 + torch.randn(2, 3, 320, 64), 8)
    query = torch.randn(2, 3, 3, 64)
    assert_close(
        coded_attention(query, keys, values, 320, SCALING), reference(query, key_states, value_states, None), 1e-3
    )


@pytest.mark.parametrize("affine", ["levels", "integers", "channel groups"])
@pytest.mark.parametrize("size", [16, 32, 64, 96, 256])
def test_any_codes_take_a_scale_per_block(affine: str, size: int) -> None:
    """Level tables, scales per token and channel groups, all of it times a scale per component and block."""
    torch.manual_seed(size)
    batch, groups, rank, tokens = 2, 2, 48, 520
    blocks = -(-tokens // size)
    inner = {
        "levels": codebook(sorted([6, 3, 5] * 16)),
        "integers": IntegerQuantizer(5, 128),
        "channel groups": IntegerQuantizer(4, 16),
    }[affine]
    coded, states = stored(inner, torch.randn(batch, groups, tokens, rank), 0)
    scale, zero = (torch.randn(batch, groups, blocks, rank).half() for _ in range(2))
    keys = replace(coded, blocks=BlockAffine(size, scale, zero))
    by_token = (each.repeat_interleave(size, 2)[:, :, :tokens].double() for each in (scale, zero))
    expected_keys = states.double() * next(by_token) + next(by_token)
    values, value_states = stored(IntegerQuantizer(8, 32), 1 + torch.randn(batch, groups, tokens, 64), 8)
    query = torch.randn(batch, groups, 3, rank)
    assert readable(keys, values)
    actual = coded_attention(query, keys, values, tokens, SCALING)
    assert_close(actual, reference(query, expected_keys, value_states, None), 1e-3)


def test_what_blocks_are_not_read() -> None:
    keys, _ = stored(IntegerQuantizer(4, 32, "token"), torch.randn(1, 1, 96, 16), 8)
    small, _ = stored(IntegerQuantizer(4, 8, "token"), torch.randn(1, 1, 96, 16), 8)
    values, _ = stored(IntegerQuantizer(4, 16), torch.randn(1, 1, 96, 16), 8)
    assert keys.blocks is not None and readable(keys, values)
    assert not readable(values, keys), "sums of values take no scale per block"
    assert not readable(small, values), "16 tokens are multiplied at once"
    for change in (keys.blocks.scale.float(), keys.blocks.scale.mT.contiguous().mT):
        assert not readable(replace(keys, blocks=replace(keys.blocks, scale=change)), values)


def codebook(widths: Sequence[int]) -> CodebookQuantizer:
    return CodebookQuantizer(tuple(widths), torch.linspace(2.0, 0.1, len(widths)))


@given(
    shapes, st.lists(st.integers(1, 8), min_size=1, max_size=60), st.lists(st.integers(1, 8), min_size=1, max_size=60)
)
@settings(deadline=None, max_examples=60)
def test_mixed_widths_with_level_tables(shape: Sequence[int], keys: list[int], values: list[int]) -> None:
    check(shape, codebook(sorted(keys, reverse=True)), codebook(values), (len(keys), len(values)), False)


@given(
    *(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 70), st.integers(1, 70)),
    *(st.booleans(), st.sampled_from([torch.float16, torch.float32])),
)
@settings(deadline=None, max_examples=60)
def test_into_latents_and_back(
    groups: int, heads: int, rows: int, rank: int, dim: int, affine: bool, kept: torch.dtype
) -> None:
    """``heads`` KV heads share a latent, each with ``rows`` of queries; bases are ``kept`` in 16 or 32 bit."""
    torch.manual_seed(rank + dim)
    batch, tokens = 2, 40
    query = torch.randn(batch, groups, heads * rows, dim)
    # Views, as a side of a joint latent has them.
    decoders = [torch.randn(groups, rank, heads, dim + 3)[..., :dim] for _ in range(2)]
    means = [torch.randn(groups, heads, dim + 3)[..., 3:] * affine for _ in range(2)]
    bases = [LatentBasis(decoder.to(kept), mean.to(kept)) for decoder, mean in zip(decoders, means, strict=True)]
    assert all(basis.usable for basis in bases)
    (keys, key_latents), (values, value_latents) = (
        stored(IntegerQuantizer(8, 128), torch.randn(batch, groups, tokens, rank) / rank**0.5, 8) for _ in range(2)
    )
    expected = partial_attention(
        query.double().view(batch, groups * heads * rows, 1, dim),
        *(expanded(latents, basis) for latents, basis in ((key_latents, bases[0]), (value_latents, bases[1]))),
        SCALING,
    )
    assert_close(coded_attention(query, keys, values, tokens, SCALING, None, (bases[0], bases[1])), expected, 1e-3)


def expanded(latents: Tensor, basis: LatentBasis) -> Tensor:
    """The states (batch, groups · heads, tokens, head_dim) that latents stand for."""
    states = torch.einsum("bgtr,grhd->bghtd", latents.double(), basis.decoder.double())
    return (states + basis.mean.double().unsqueeze(-2)).flatten(1, 2)


word_runs = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 12)), min_size=1, max_size=5).filter(
    lambda runs: any(width for width, _ in runs)
)
"""Widths, and words of four components of that width, in any order."""


def in_words(runs: Sequence[tuple[int, int]]) -> list[int]:
    return [width for width, words in runs for _ in range(4 * words)]


@given(shapes, word_runs, word_runs)
@settings(deadline=None, max_examples=80)
def test_mixed_widths_in_whole_words(
    shape: Sequence[int], keys: list[tuple[int, int]], values: list[tuple[int, int]]
) -> None:
    widths = in_words(keys), in_words(values)
    check(shape, codebook(widths[0]), codebook(widths[1]), (len(widths[0]), len(widths[1])), False)


@pytest.mark.parametrize("how", ["no byte permutation", "few slots"])
def test_runs_that_no_plan_takes(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Unpacked run by run, all of them or those of crowded vectors, the same codes mean the same."""
    widths = in_words([(6, 5), (5, 7), (4, 9), (3, 5), (2, 4), (1, 6)]) + [1] * (how == "few slots")
    if how == "few slots":
        monkeypatch.setattr("kvbench.kernels.cpu.unpack_plan.MOST_SLOTS", 2)
    else:
        monkeypatch.setattr("kvbench.kernels.cpu.unpack_plan.columns_of_a_table", lambda: 0)
    coded, _ = stored(codebook(widths), torch.randn(1, 1, 8, len(widths)), 8)
    layout = column_layout(coded)
    assert len(layout.runs) and bool(len(layout.plan.vectors)) == (how == "few slots" and columns_of_a_table() > 0)
    check((2, 1, 4, 9), codebook(widths), codebook(widths), (len(widths), len(widths)), True)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_with_a_norm_per_token(bits: int) -> None:
    quantizer = GaussianQuantizer.on(torch.device("cpu"), bits)
    check((2, 3, 3, 11), quantizer, quantizer, (64, 64), True)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats(dtype: torch.dtype) -> None:
    quantizer = FloatQuantizer(dtype, scaled=True)
    check((2, 3, 3, 11), quantizer, quantizer, (64, 40), True)


@pytest.mark.parametrize(
    "quantizer",
    [
        GaussianQuantizer.on(torch.device("cpu"), 3),
        FloatQuantizer(torch.float8_e4m3fn, scaled=True),
        codebook([4] * 16),
        IntegerQuantizer(4, 16),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_what_is_the_same_at_every_step_is_worked_out_once(quantizer: Quantizer) -> None:
    first, second = (stored(quantizer, torch.randn(1, 1, 8, 16), 0)[0] for _ in range(2))
    assert column_layout(first) is column_layout(second)
    assert column_layout(first).column_scale(first.component) is column_layout(second).column_scale(second.component)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("parallel", [True, False], ids=["in torch's threads", "in a pool"])
@pytest.mark.parametrize("size", [None, 32, 432], ids="keys in blocks of {}".format)
def test_splits_and_threads_change_nothing(
    monkeypatch: pytest.MonkeyPatch, threads: int, parallel: bool, size: int | None
) -> None:
    monkeypatch.setattr("kvbench.kernels.cpu.launch.SMALL", 0)
    if not parallel:
        monkeypatch.setattr("kvbench.kernels.cpu.launch.parallel_region", lambda: None)
    torch.manual_seed(0)
    before = torch.get_num_threads()
    quantizer, tokens = IntegerQuantizer(4, 64), 4320
    query = torch.randn(1, 1, 3, 64)
    key_quantizer = quantizer if size is None else IntegerQuantizer(4, size, "token")
    keys, key_states = stored(key_quantizer, torch.randn(1, 1, tokens, 64), 8)
    values, value_states = stored(quantizer, torch.randn(1, 1, tokens, 64), 8)
    try:
        torch.set_num_threads(threads)
        coded = coded_attention(query, keys, values, tokens, SCALING)
        exact = exact_decode(query, key_states, value_states, SCALING)
    finally:
        torch.set_num_threads(before)
    expected = reference(query, key_states, value_states, None)
    assert_close(coded, expected, 1e-3)
    assert_close(exact, expected, 3e-6)


def test_fewer_tokens_are_shared_where_they_take_longer() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert [splits_for(1, tokens) for tokens in (1000, 1024)] == [1, 2]
        assert [splits_for(1, tokens, 16 * COSTLY) for tokens in (120, 128)] == [1, 2]
        assert splits_for(2, 4096, 16 * COSTLY) == 1  # all threads have a pair
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not has_matrices(), reason="this processor has no AMX, or Linux does not grant it")
@given(st.integers(6, 20), st.integers(1, 20), st.sampled_from([16, 48, 64, 144]), st.booleans())
@settings(deadline=None, max_examples=40)
def test_matrices_give_the_same_sums(rows: int, eights: int, rank: int, looked_up: bool) -> None:
    torch.manual_seed(rank + eights)
    widths = [(8, 6, 5, 3, 2, 1)[index * 6 // rank] for index in range(rank)]
    quantizer = codebook(widths) if looked_up else IntegerQuantizer(3, rank)
    (keys, _), (values, _) = (stored(quantizer, torch.randn(2, 1, 8 * eights, rank), 0) for _ in range(2))
    query = torch.randn(2, 1, rows, rank)
    by_matrices = coded_attention(query, keys, values, 8 * eights, SCALING)
    with patch("kvbench.kernels.cpu.coded._ENOUGH", 1000):
        by_rows = coded_attention(query, keys, values, 8 * eights, SCALING)
    for actual, expected in ((by_matrices.output, by_rows.output), (by_matrices.lse, by_rows.lse)):
        assert torch.allclose(actual, expected, rtol=1e-5, atol=2e-5)  # a weight between two steps may go either way


def test_a_row_that_sees_nothing_weighs_nothing() -> None:
    query, states = torch.randn(2, 1, 2, 16), torch.randn(2, 1, 70, 16)
    mask = torch.ones(2, 1, 1, 70, dtype=torch.bool)
    mask[1] = False
    assert (exact_decode(query, states, states, SCALING, mask).lse[1] < -1e29).all()
    coded, _ = stored(IntegerQuantizer(8, 16), torch.randn(2, 1, 72, 16), 0)
    mask = torch.cat([mask, mask[..., :2]], -1)
    assert (coded_attention(query, coded, coded, 72, SCALING, mask).lse[1] < -1e29).all()


def test_large_scores_stay_finite() -> None:
    query, states = torch.full((1, 1, 1, 16), 300.0), torch.randn(1, 1, 64, 16)
    actual = exact_decode(query, states, states, 1.0)
    assert_close(actual, partial_attention(query.double(), states.double(), states.double(), 1.0), 1e-4)


def test_an_inherited_description_does_not_outlive_another_decoder() -> None:
    class Twisted(IntegerQuantizer):
        def decode(self, stored: dict[str, Tensor]) -> Tensor:
            return -super().decode(stored)

    encoded = IntegerQuantizer(4, 16).encode(torch.randn(1, 1, 8, 16))
    assert kernel_view(IntegerQuantizer(4, 16), encoded) is not None
    assert kernel_view(Twisted(4, 16), encoded) is None
