"""Parts of a context merge into one softmax, whatever the split, the masks and the head groups."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from kvbench.kernels import reference as partial
from kvbench.kernels.reference import Partial, causal_mask, exact_attention, merge, partial_attention

SCALING = 0.3


@dataclass(frozen=True)
class Case:
    """One attention problem in fp64; ``mask`` (batch, kv heads or 1, queries, tokens) or None; ``cuts`` split it."""

    query: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor | None
    softcap: float | None
    cuts: list[int]

    @property
    def parts(self) -> list[Partial]:
        edges = [0, *self.cuts, self.keys.shape[2]]
        return [
            partial_attention(
                self.query,
                self.keys[:, :, start:stop],
                self.values[:, :, start:stop],
                SCALING,
                None if self.mask is None else self.mask[..., start:stop],
                self.softcap,
            )
            for start, stop in pairwise(edges)
        ]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch, kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    queries, tokens = draw(st.integers(1, 5)), draw(st.integers(2, 24))
    head_dim, value_dim = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * draw(st.sampled_from([0.1, 1.0, 20.0]))

    mask = None
    if draw(st.booleans()):
        rows, heads = draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, kv_heads]))
        mask = torch.rand(rows, heads, queries, tokens, generator=generator) < draw(st.sampled_from([0.2, 0.8]))
    cuts = sorted(draw(st.sets(st.integers(1, tokens - 1), max_size=4)))
    return Case(
        normal(batch, kv_heads * group, queries, head_dim),
        normal(batch, kv_heads, tokens, head_dim),
        normal(batch, kv_heads, tokens, value_dim),
        mask,
        draw(st.sampled_from([None, 5.0])),
        cuts,
    )


def one_softmax(case: Case) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, written out head by head."""
    group = case.query.shape[1] // case.keys.shape[1]
    keys, values = case.keys.repeat_interleave(group, 1), case.values.repeat_interleave(group, 1)
    scores = case.query @ keys.transpose(-1, -2) * SCALING
    if case.softcap is not None:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    if case.mask is not None:
        mask = case.mask if case.mask.shape[1] == 1 else case.mask.repeat_interleave(group, 1)
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


@given(cases())
@settings(deadline=None, max_examples=150)
def test_merged_parts_equal_one_softmax(case: Case) -> None:
    merged = merge(case.parts)
    output, lse = one_softmax(case)
    attended = lse.isfinite()
    assert merged.output.isfinite().all(), "also where a row attends to nothing"
    scale = case.values.abs().max()
    assert (merged.output - output)[attended].abs().le(1e-12 * scale).all()
    assert torch.allclose(merged.lse[attended], lse[attended], rtol=1e-12, atol=1e-12)


@given(cases())
@settings(deadline=None, max_examples=50)
def test_merging_is_associative(case: Case) -> None:
    parts = case.parts
    whole, nested = merge(parts), merge([parts[0], merge(parts[1:])]) if len(parts) > 1 else parts[0]
    attended = one_softmax(case)[1].isfinite()
    assert torch.allclose(whole.output[attended], nested.output[attended], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_attends_to_nothing_is_the_mean_and_weighs_nothing(dtype: torch.dtype) -> None:
    """The mean, not the sum: a sum over thousands of padding tokens leaves fp16's range and poisons later layers."""
    tokens = 3000
    query, keys = torch.ones(1, 2, 1, 4, dtype=dtype), torch.ones(1, 1, tokens, 4, dtype=dtype)
    values = torch.full((1, 1, tokens, 4), 40.0, dtype=dtype)
    nothing = partial_attention(query, keys, values, 1.0, torch.zeros(1, 1, 1, tokens, dtype=torch.bool))
    assert torch.allclose(nothing.output.float(), torch.tensor(40.0), rtol=0.01)
    both = merge([nothing, nothing, nothing])
    assert torch.allclose(both.output.float(), torch.tensor(40.0), rtol=0.01)
    something = partial_attention(query, keys, -values, 1.0)
    assert torch.equal(merge([nothing, something]).output, something.output)


@pytest.mark.parametrize("queries", [1, 7, 12])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("masked", [False, True])
def test_exact_attention_is_causal_attention(queries: int, softcap: float | None, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, queries, 8, generator=generator, dtype=torch.float64)
    keys, values = (torch.randn(2, 3, 12, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = causal_mask(queries, 12, torch.device("cpu")).expand(2, -1, -1, -1)
    if masked:
        mask = mask.clone()
        mask[0, ..., :3] = False
    actual = exact_attention(query, keys, values, SCALING, mask if masked else None, softcap)
    expected, lse = one_softmax(Case(query, keys, values, mask, softcap, []))
    attended = lse.isfinite()
    assert torch.allclose(actual[attended], expected[attended], rtol=1e-12, atol=1e-13)
    assert actual.isfinite().all()


def test_exact_attention_in_slices_equals_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    query, keys, values = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    whole = exact_attention(query, keys, values, SCALING, softcap=3.0)
    monkeypatch.setattr(partial, "MAX_SCORES", 80)  # two queries at a time
    assert torch.allclose(exact_attention(query, keys, values, SCALING, softcap=3.0), whole, rtol=1e-6, atol=1e-6)


def test_causal_mask_puts_the_queries_last() -> None:
    assert causal_mask(2, 4, torch.device("cpu"))[0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_sixteen_bit_attention_keeps_its_tail(dtype: torch.dtype, tolerance: float) -> None:
    """Thousands of equal weights: a 16-bit sum of them would stall at 256 (bf16) or 2048 (fp16)."""
    tokens = 8000
    query, keys = torch.zeros(1, 1, 1, 4, dtype=dtype), torch.zeros(1, 1, tokens, 4, dtype=dtype)
    values = torch.linspace(0, 2, tokens).view(1, 1, tokens, 1).expand(-1, -1, -1, 4).to(dtype)
    halves = [partial_attention(query, keys[:, :, s], values[:, :, s], 1.0) for s in (slice(0, 100), slice(100, None))]
    assert functional.l1_loss(merge(halves).output.float(), torch.ones(1, 1, 1, 4)) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_16_bit_tensors_are_attended_in_fp32(dtype: torch.dtype, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of up to 40: one rounding of them to bf16 would be off by a tenth, and so would the weights."""
    monkeypatch.setattr(partial, "WIDENED", 16)  # 50 tokens are read in four spans
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (
        torch.randn(2, heads, size, 32, generator=generator) for heads, size in ((4, 3), (2, 50), (2, 50))
    )
    query, keys, values = (6 * query).to(dtype), keys.to(dtype), values.to(dtype)
    mask = torch.rand(2, 1, 3, 50, generator=generator) < 0.5 if masked else None
    part = partial_attention(query, keys, values, SCALING, mask)
    exact = partial_attention(query.double(), keys.double(), values.double(), SCALING, mask)
    assert part.output.dtype == part.lse.dtype == torch.float32
    assert (part.output - exact.output).abs().max() < 2e-5
    assert (part.lse - exact.lse).abs().max() < 2e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_16_bit_step_is_what_the_stock_kernel_makes_of_it(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 1, 32), (2, 2, 50, 32), (2, 2, 50, 32))
    query, keys, values = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    actual = exact_attention(query, keys, values, SCALING)
    stock = functional.scaled_dot_product_attention(query, keys, values, scale=SCALING, enable_gqa=True)
    assert actual.dtype == dtype and actual.shape == stock.shape
    assert (actual.double() - stock.double()).abs().max() <= torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_several_queries_by_the_fused_kernel_are_what_the_scores_say(dtype: torch.dtype, masked: bool):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 5, 16, generator=generator, dtype=dtype)
    keys, values = (torch.randn(2, 3, 70, 16, generator=generator, dtype=dtype) for _ in range(2))
    mask = torch.rand(2, 1, 5, 70, generator=generator) < 0.7 if masked else None
    if mask is not None:
        mask[0, :, 2] = False  # a query that sees nothing stays finite
    part = partial_attention(query, keys, values, SCALING, mask)
    scores = query.double() @ keys.double().repeat_interleave(2, 1).mT * SCALING
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(dtype).min)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(part.lse.double(), scores.logsumexp(-1), **close)
    expected = scores.softmax(-1) @ values.double().repeat_interleave(2, 1)
    torch.testing.assert_close(part.output.double(), expected, **close)
