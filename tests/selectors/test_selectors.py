"""What selectors think of tokens, against attention written out and against chance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvbench.selectors import attention
from kvbench.selectors.attention import SnapKvSelector, TovaSelector, observed_attention
from kvbench.selectors.base import Budget, Leaving, Observed, Selector, pick
from kvbench.selectors.expected import ExpectedAttentionSelector
from kvbench.selectors.plain import DropAll, KeyNormSelector, RandomSelector

HEADS, KV_HEADS, DIM = 4, 2, 8
HALF = Budget(0.5)


def leaving(tokens: int = 40, queries: int = 12, begin: int = 4, end: int = 30, **changes: object) -> Leaving:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    keys, values = normal(2, KV_HEADS, tokens, DIM), normal(2, KV_HEADS, tokens, DIM)
    fields = {
        "keys": keys,
        "values": values,
        "observed": Observed(normal(2, HEADS, queries, DIM), DIM**-0.5),
        "start": 0,
        "begin": begin,
        "end": end,
    }
    return Leaving(**(fields | changes))  # type: ignore[arg-type]


def written_out(case: Leaving, window: int) -> Tensor:
    """Attention summed over the window, query by query and head by head, (batch, heads, candidates)."""
    batch, heads, queries, _ = case.observed.query.shape
    tokens = case.keys.shape[2]
    total = torch.zeros(batch, heads, case.end - case.begin, dtype=torch.float64)
    for row in range(batch):
        padding = 0 if case.first is None else int(case.first[row])
        for head in range(heads):
            keys = case.keys[row, head // (heads // KV_HEADS)]
            for back in range(min(window, queries)):
                seen = tokens - back
                if seen <= padding:
                    continue
                scores = keys[padding:seen] @ case.observed.query[row, head, queries - 1 - back] * case.observed.scaling
                weights = torch.zeros(tokens, dtype=torch.float64)
                weights[padding:seen] = scores.softmax(0)
                total[row, head] += weights[case.begin : case.end]
    return total


@pytest.mark.parametrize("window", [1, 5, 64])
@pytest.mark.parametrize("padding", [None, (0, 7), (33, 0)])
def test_observed_attention_is_attention(window: int, padding: tuple[int, int] | None) -> None:
    """Also where the window reaches back before the candidates, and where queries are padding themselves."""
    case = leaving(queries=40 if window == 64 else 12, first=None if padding is None else torch.tensor(padding))
    importance = observed_attention(case, window, aware=True).flatten(1, 2)
    torch.testing.assert_close(importance.double(), written_out(case, window), atol=1e-6, rtol=1e-5)


def test_slices_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = leaving()
    whole = observed_attention(case, 12, True)
    monkeypatch.setattr(attention, "MAX_SCORES", 2 * HEADS * 40 * 5)
    torch.testing.assert_close(observed_attention(case, 12, True), whole)


def test_snapkv_keeps_what_the_end_of_the_prompt_attends_to_and_its_neighbours() -> None:
    case = leaving()
    query = case.observed.query[:, ::2, -1]
    case.keys[:, :, 17] = 50 * query / query.norm(dim=-1, keepdim=True)
    scores = SnapKvSelector(HALF, 1, 5, aware=True).scores(case)[:, :, :]
    top = scores.topk(5, -1).indices.sort(-1).values + case.begin
    assert (top == torch.arange(15, 20)).all()


def test_tova_keeps_the_same_tokens_in_all_heads() -> None:
    case = leaving()
    scores = TovaSelector(HALF, aware=True).scores(case)
    assert scores.shape == (2, KV_HEADS, 26)
    assert (scores[:, 0] == scores[:, 1]).all()
    torch.testing.assert_close(scores[:, 0].double(), written_out(case, 1).mean(1), atol=1e-6, rtol=1e-5)


def test_key_norm_keeps_short_keys() -> None:
    case = leaving()
    case.keys[:, :, 9] *= 1e-3
    assert (KeyNormSelector(HALF).scores(case).argmax(-1) == 9 - case.begin).all()


def test_chance_agrees_between_rows_and_runs_but_not_between_heads_layers_and_seeds() -> None:
    case = leaving()
    scores = RandomSelector(HALF, 3, 0).scores(case)
    assert (scores[0] == scores[1]).all()
    assert (scores == RandomSelector(HALF, 3, 0).scores(case)).all()
    assert (scores[0, 0] != scores[0, 1]).any()
    assert (scores != RandomSelector(HALF, 4, 0).scores(case)).any()
    assert (scores != RandomSelector(HALF, 3, 1).scores(case)).any()
    assert (scores != RandomSelector(HALF, 3, 0).scores(leaving(start=32))).any()


def test_expected_attention_is_the_mean_over_gaussian_queries() -> None:
    """One query head per KV head: sampled queries must give the same weights as the closed form."""
    generator = torch.Generator().manual_seed(0)
    case = leaving(observed=Observed(torch.zeros(2, KV_HEADS, 1, DIM, dtype=torch.float64), DIM**-0.5))
    mean = torch.randn(KV_HEADS, DIM, generator=generator, dtype=torch.float64)
    root = torch.randn(KV_HEADS, DIM, DIM, generator=generator, dtype=torch.float64) * 0.4
    selector = ExpectedAttentionSelector(HALF, mean, root @ root.transpose(1, 2))
    queries = mean[:, None] + torch.randn(KV_HEADS, 400_000, DIM, generator=generator, dtype=torch.float64) @ root.mT
    keys, values = case.keys[:, :, 4:], case.candidates[1]  # the exact window takes part in the softmax
    sampled = torch.stack([(queries @ row.mT * case.observed.scaling).exp().mean(1) for row in keys])  # (B, n_kv, T)
    expected = (sampled / sampled.sum(-1, keepdim=True))[:, :, :26] * values.norm(dim=-1)
    torch.testing.assert_close(selector.scores(case), expected, rtol=0.05, atol=1e-4)
    assert len(selector.tensors()) == 2


@pytest.mark.parametrize("together", [True, False])
def test_picks_are_ascending_and_spare_padding(together: bool) -> None:
    """Row 0 has 12 slots of padding and 2 sinks: slots 12 and 13 belong to it already."""
    case = leaving(first=torch.tensor([12, 0]))
    selector: Selector = KeyNormSelector(HALF)
    picks = pick(selector, case, 13, sinks=2, together=together) + case.begin
    assert picks.shape == (2, KV_HEADS, 13)
    assert (picks.diff(dim=-1) > 0).all()
    assert (picks[0] >= 14).all()
    assert bool((picks[:, 0] == picks[:, 1]).all()) == together


def test_padding_is_picked_last_when_there_is_nothing_else() -> None:
    case = leaving(first=torch.tensor([20, 0]))
    picks = pick(KeyNormSelector(HALF), case, 13, sinks=2, together=False)
    real = torch.arange(22, 30) - case.begin
    for head in picks[0]:
        assert set(real.tolist()) <= set(head.tolist())


@given(st.floats(0.001, 1), st.integers(0, 5000), st.sampled_from([1, 8, 32]), st.none() | st.integers(1, 4000))
def test_kept_tokens_stay_within_the_budget(share: float, tokens: int, block: int, most: int | None) -> None:
    kept = Budget(share, most).kept(tokens, block)
    assert kept % block == 0
    allowed = share * tokens if most is None else min(share * tokens, most)
    assert kept <= allowed < kept + block + 1


@given(st.floats(1 / 64, 1), st.sampled_from([1, 8, 32]))
def test_enough_tokens_leave_together_to_keep_a_block_of_them(share: float, block: int) -> None:
    budget = Budget(share)
    leaving = budget.leaving(block)
    assert budget.kept(leaving, block) >= block or share * leaving == pytest.approx(block)


def test_a_budget_of_nothing_or_of_a_count_needs_no_larger_blocks() -> None:
    assert DropAll().budget.leaving(8) == Budget(most=100).leaving(8) == 8
    assert DropAll().budget.kept(1000, 8) == 0


# ---- what a question may choose ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda aware: SnapKvSelector(HALF, 5, 3, aware), lambda aware: TovaSelector(HALF, aware)]
)
def test_only_an_aware_selector_looks_at_the_window(make) -> None:
    """Of 40 tokens those at 4 … 29 leave, so the last ten queries belong to the exact window."""
    case, other = leaving(queries=20), leaving(queries=20)
    other.observed.query[:, :, 10:] += 3
    assert torch.equal(make(False).scores(case), make(False).scores(other))
    assert not torch.equal(make(True).scores(case), make(True).scores(other))


def test_agnostic_attention_is_that_of_the_newest_tokens_that_leave() -> None:
    """As if the exact window were still to come."""
    case = leaving(queries=20)
    early = Observed(case.observed.query[:, :, :10], case.observed.scaling)
    before = Leaving(case.keys[:, :, :30], case.values[:, :, :30], early, 0, 4, 30)
    torch.testing.assert_close(observed_attention(case, 5, False), observed_attention(before, 5, True))


def test_while_decoding_the_one_query_counts() -> None:
    case = leaving(queries=1)
    assert case.leaving_queries == 1
    torch.testing.assert_close(observed_attention(case, 64, False), observed_attention(case, 64, True))


def test_where_all_stay_none_is_scored() -> None:
    class Unasked(KeyNormSelector):
        def scores(self, leaving: Leaving) -> Tensor:
            raise AssertionError("there was nothing to choose")

    case = leaving()
    kept = pick(Unasked(HALF), case, case.end - case.begin, sinks=0, together=False)
    assert torch.equal(kept, torch.arange(26).expand(2, KV_HEADS, -1))
