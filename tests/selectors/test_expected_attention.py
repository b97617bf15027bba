"""Expected attention, against the paper's formula written out with transformers' RoPE: no part of kvbench in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from driving import Subject, calibrated, feed, left_padding, position_ids, subject, token_ids
from torch import Tensor
from transformers import AutoModelForCausalLM, Glm4Config, LlamaConfig, PreTrainedModel

from kvbench.cache.attach import CompressedModel, Plan
from kvbench.cache.spans import Spans
from kvbench.compressors.compressor import parse
from kvbench.errors import UnsupportedModelError
from kvbench.hooks.applied import AppliedRotation
from kvbench.hooks.geometry import ModelGeometry, probe_geometry
from kvbench.measure.prompt import exact_prompt
from kvbench.selectors.base import Leaving
from kvbench.selectors.expected import ExpectedAttentionSelector

pytestmark = pytest.mark.usefixtures("fp64")
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 259,
    "intermediate_size": 96,
    "pad_token_id": 0,
}
CONFIGS = {"glm4": lambda: Glm4Config(**SIZES), "yarn": lambda: LlamaConfig(**SIZES, rope_parameters=YARN)}
ROPE = ("llama", "qwen3", "gpt_neox", *CONFIGS)
"""Half-split, behind a norm, of some dimensions only, of neighbouring dimensions, and with a scale."""
SPANS = Spans(sinks=2, recent=9, block=8)
FP32 = {"atol": 2e-6, "rtol": 1e-4}
"""transformers computes angles in fp32, here at positions up to 700; those of kvbench come from position 1."""


@lru_cache
def of_family(family: str) -> Subject:
    """A family's shared model, or one of ``CONFIGS``."""
    if family not in CONFIGS:
        return subject(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float64)
    model.eval().requires_grad_(False)
    return Subject(family, model, probe_geometry(model))


# ---- the formula ---------------------------------------------------------------------------------------------------


@contextmanager
def recorded_queries(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Queries (batch, heads, tokens, d) before RoPE, layer after layer, as transformers hands them to its RoPE."""
    queries: list[Tensor] = []
    family: Any = sys.modules[type(model).__module__]
    stock = family.apply_rotary_pos_emb

    def apply(query: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        queries.append(query)
        return stock(query, *others, **named)

    family.apply_rotary_pos_emb = apply
    try:
        yield queries
    finally:
        family.apply_rotary_pos_emb = stock


def query_moments(one: Subject, layer: int) -> tuple[Tensor, Tensor]:
    """Mean (heads, d) and covariance (heads, d, d) of the queries of ``calibrated``'s windows, without four sinks."""
    with recorded_queries(one.model) as queries:
        one.model(token_ids(4, 96, seed=7), use_cache=False)
    heads = queries[layer][:, :, 4:].transpose(0, 1).flatten(1, 2)
    return heads.mean(1), torch.stack([head.T.cov(correction=0) for head in heads])


def mean_rotation(one: Subject, positions: Tensor) -> Tensor:
    """(d, d): the mean of the matrices that rotate a vector at each of ``positions``."""
    family: Any = sys.modules[type(one.model).__module__]
    rotary = next(part for name, part in one.model.named_modules() if name.endswith("rotary_emb"))
    dim = one.geometry.layers[0].head_dim
    cos, sin = rotary(torch.zeros(1, dtype=torch.float64), positions[None])
    units = torch.eye(dim, dtype=torch.float64)[:, None].expand(-1, len(positions), -1)  # each unit at all positions
    rotated = family.apply_rotary_pos_emb(units[None], units[None], cos, sin)[0][0]  # (d, positions, d)
    return rotated.mean(1).T  # the i-th column is where unit i goes


def written_out(keys: Tensor, values: Tensor, moments: tuple[Tensor, Tensor], rotation: Tensor) -> Tensor:
    """Scores (n_kv, T) of one row: the paper's, token by token and head by head."""
    (mean, covariance), dim = moments, keys.shape[-1]
    group = len(mean) // len(keys)
    scores = torch.zeros(keys.shape[:2], dtype=torch.float64)
    for head in range(len(mean)):
        m, c = rotation @ mean[head], rotation @ covariance[head] @ rotation.T
        logits = torch.stack([k @ m / dim**0.5 + k @ c @ k / (2 * dim) for k in keys[head // group]])
        scores[head // group] += logits.softmax(0) / group
    return scores * values.norm(dim=-1)


# ---- what kvbench computes -----------------------------------------------------------------------------------------


@dataclass
class Scored:
    """Each call of a selector, in order."""

    leaving: list[Leaving]
    scores: list[Tensor]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Scored:
    record, scores = Scored([], []), ExpectedAttentionSelector.scores

    def watched(self: ExpectedAttentionSelector, leaving: Leaving) -> Tensor:
        record.leaving.append(leaving)
        record.scores.append(scores(self, leaving))
        return record.scores[-1]

    monkeypatch.setattr(ExpectedAttentionSelector, "scores", watched)
    return record


def attached(one: Subject, spec: str = "expected-attention:budget=0.5") -> CompressedModel:
    plan = parse(spec).fit(one.geometry, lambda: calibrated(one))
    return one.attach_untested(Plan(plan.layers, SPANS))


def stock_states(one: Subject, ids: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    cache = one.stock_cache()
    one.model(ids, past_key_values=cache, use_cache=True)
    return cache.layers[layer].keys, cache.layers[layer].values


@pytest.mark.parametrize("family", ROPE)
def test_scores_of_a_prompt_are_the_papers(family: str, scored: Scored) -> None:
    one, ids = of_family(family), token_ids(2, 100)
    with attached(one) as compressed:
        feed(one.model, compressed.new_cache(), ids, [100])
    rotation = mean_rotation(one, torch.arange(100, 612))
    for layer in range(2):
        keys, values = (states[:, :, SPANS.sinks :] for states in stock_states(one, ids, layer))
        moments = query_moments(one, layer)
        leaving, scores = scored.leaving[layer], scored.scores[layer]
        assert scores.shape[-1] == leaving.end - leaving.begin < keys.shape[2]
        for row in range(2):
            expected = written_out(keys[row], values[row], moments, rotation)[:, : scores.shape[-1]]
            torch.testing.assert_close(scores[row], expected, **FP32)


def test_scores_of_a_model_without_rope(scored: Scored) -> None:
    one, ids = subject("gpt2"), token_ids(1, 100)
    queries: list[Tensor] = []
    handle = one.model.transformer.h[1].attn.c_attn.register_forward_hook(lambda m, i, out: queries.append(out))
    one.model(token_ids(4, 96, seed=7), use_cache=False)
    handle.remove()
    heads = queries[0][..., :64].unflatten(-1, (4, 16)).permute(2, 0, 1, 3)[:, :, 4:].flatten(1, 2)
    moments = heads.mean(1), torch.stack([head.T.cov(correction=0) for head in heads])
    with attached(one) as compressed:
        feed(one.model, compressed.new_cache(), ids, [100])
    assert scored.leaving[1].observed.applied is None
    keys, values = (states[0, :, SPANS.sinks :] for states in stock_states(one, ids, 1))
    expected = written_out(keys, values, moments, torch.eye(16, dtype=torch.float64))
    torch.testing.assert_close(scored.scores[1][0], expected[:, : scored.scores[1].shape[-1]])


# ---- where the newest token is -------------------------------------------------------------------------------------


def chosen_rotation(leaving: Leaving) -> Tensor:
    """R̄ (d, d) of the first row, as the selector applies it: its transpose, to unit vectors."""
    assert leaving.observed.applied is not None
    units = torch.eye(leaving.keys.shape[-1], dtype=torch.float64)[None, None]
    return leaving.observed.applied.transposed_mean(units, 512)[0, 0]


@pytest.mark.parametrize("as_decoded", [False, True])
@pytest.mark.parametrize("family", ["llama", "glm4", "yarn"])
def test_positions_to_come_are_those_after_the_newest_token(family: str, as_decoded: bool, scored: Scored) -> None:
    one, ids = of_family(family), token_ids(1, 150)
    with attached(one) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [60])
        cache.as_decoded = as_decoded
        feed(one.model, cache, ids, [90] if as_decoded else [1] * 90, start=60)
    newest = [leaving.start + leaving.keys.shape[2] - 1 for leaving in scored.leaving]
    assert newest[0] == 59 and sorted(set(newest))[1] < 85 and max(newest) > 130
    for leaving, last in zip(scored.leaving, newest, strict=True):
        expected = mean_rotation(one, torch.arange(last + 1, last + 513))
        torch.testing.assert_close(chosen_rotation(leaving), expected, **FP32)


def test_a_later_newest_token_changes_the_scores_unless_keys_move_along(scored: Scored) -> None:
    """The rotation is relative: 200 positions later for keys and newest token alike, nothing has changed."""
    one, ids = subject("llama"), token_ids(1, 100)
    with attached(one) as compressed:
        for shift in (0, 200):
            positions = torch.arange(100)[None] + shift
            one.model(ids, past_key_values=compressed.new_cache(), position_ids=positions, use_cache=True)
    leaving, moved = scored.leaving[0], scored.leaving[2]
    torch.testing.assert_close(scored.scores[0], scored.scores[2], **FP32)
    mixed = replace(leaving, observed=replace(leaving.observed, applied=moved.observed.applied))
    selector = compressed.plan.layers[0].selector
    assert selector is not None
    assert ((selector.scores(mixed) / scored.scores[0]).log().abs() > 20 * FP32["rtol"]).any()


def test_a_padded_row_is_scored_as_if_it_were_alone(scored: Scored) -> None:
    one, ids, mask = subject("llama"), token_ids(2, 100), left_padding(2, 100, (13, 0))
    with attached(one) as compressed:
        cache = compressed.new_cache()
        extra = {"attention_mask": mask, "position_ids": position_ids(mask)}
        one.model(ids, past_key_values=cache, use_cache=True, **extra)
        feed(one.model, compressed.new_cache(), ids[:1, 13:], [87])
    for padded, alone in zip(scored.scores[:2], scored.scores[2:], strict=True):
        together = min(padded.shape[-1] - 13, alone.shape[-1])
        torch.testing.assert_close(padded[0, :, 13:][:, :together], alone[0][:, :together], **FP32)


def test_a_prompt_computed_once_is_scored_as_in_the_model(scored: Scored) -> None:
    one, ids = subject("llama"), token_ids(1, 100)
    with attached(one) as compressed:
        feed(one.model, compressed.new_cache(), ids, [100])
    exact_prompt(one.model, one.geometry, ids).fill(compressed)
    for here, there in zip(scored.scores[:2], scored.scores[2:], strict=True):
        torch.testing.assert_close(here, there)


def test_averaging_shortens_fast_pairs_and_leaves_slow_ones() -> None:
    one = subject("llama")
    layer = one.geometry.layers[0]
    start = torch.ones(1, 1, layer.head_dim, dtype=torch.float64), torch.zeros(1, 1, layer.head_dim)
    applied = AppliedRotation(one.model.model.layers[0].self_attn, layer, start)
    cos, sin = applied.mean_of_next(512, torch.float64)
    lengths = torch.hypot(cos, sin)[0, 0]
    angles = torch.tensor(layer.angles).abs()
    assert lengths[angles > 0.5].max() < 0.02 and lengths[angles < 1e-3].min() > 0.98


# ---- settings ------------------------------------------------------------------------------------------------------


def test_epsilon_is_added_to_the_attention(scored: Scored) -> None:
    one, ids = subject("llama"), token_ids(1, 100)
    for epsilon in ("", ",epsilon=0.02"):
        with attached(one, f"expected-attention:budget=0.5{epsilon}") as compressed:
            feed(one.model, compressed.new_cache(), ids, [100])
    values = scored.leaving[0].candidates[1]
    torch.testing.assert_close(scored.scores[2] - scored.scores[0], 0.02 * values.norm(dim=-1))


def test_rope_of_another_width_is_refused() -> None:
    one = subject("llama")
    layers = tuple(replace(layer, angles=()) for layer in one.geometry.layers)
    geometry: ModelGeometry = replace(one.geometry, layers=layers)
    with pytest.raises(UnsupportedModelError, match="positions to come"):
        parse("expected-attention:budget=0.5").fit(geometry, calibrated(one))
