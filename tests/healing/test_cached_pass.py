"""The pass that is trained computes what the cache computes, and gradients reach all bases."""

from __future__ import annotations

import pytest
import torch
from driving import Subject, calibrated, feed, subject, token_ids, worst

from kvbench.cache.attach import Plan
from kvbench.cache.spans import Spans
from kvbench.compressors.compressor import parse
from kvbench.conversion.checkpoint import latent_layers, latent_model
from kvbench.conversion.reference import logits_through_codecs
from kvbench.healing import cached_pass
from kvbench.healing.bases import Bases
from kvbench.healing.cached_pass import cached_logits, first_to_meet_codes
from kvbench.healing.healable import require_healable
from kvbench.healing.teacher import Teacher, log_probabilities
from kvbench.measure.arms import Arm
from kvbench.measure.divergence import divergence
from kvbench.measure.quality import QualityBench

EXACT = 1e-10
SPANS = Spans(sinks=2, recent=5, block=8)
PROMPT, TOKENS = 20, 60

SPECS = (
    "pca:rank=0.5",
    "pca:rank=0.5,heads=each,frame=after",
    "latent:rank=0.5",
    "mla:latent=24,rope_dims=8",
    "palu:rank=0.5,group=2+int:bits=4",
    "eigen:rank=0.5",
    "svd:rank=0.5+kivi:bits=4,group=8",
    "matryoshka:rank=0.5",
    "kvtc:bits=3",
)
FAMILIES = ("qwen2", "gpt2", "gemma3", "gpt_oss", "deepseek_v3")
"""Biases, no RoPE, sliding windows, learned sinks, latents."""


def fitted(one: Subject, spec: str, spans: Spans = SPANS) -> Plan:
    return Plan(parse(spec).fit(one.geometry, lambda: calibrated(one)).layers, spans)


def through_the_cache(one: Subject, plan: Plan, ids: torch.Tensor) -> torch.Tensor:
    with one.attach_untested(plan) as compressed:
        cache = compressed.new_cache()
        prefilled = feed(one.model, cache, ids, [PROMPT])
        cache.as_decoded = True
        return torch.cat([prefilled, feed(one.model, cache, ids, [TOKENS - PROMPT], start=PROMPT)], 1)


def difference(one: Subject, plan: Plan) -> tuple[float, float]:
    """From the cache's logits, and from those without compression."""
    ids = token_ids(2, TOKENS)
    require_healable("it", plan, one.geometry)
    logits = cached_logits(one.model, one.geometry, Bases(plan).trained(), ids, PROMPT)
    return worst(logits, through_the_cache(one, plan, ids)), worst(logits, one.model(ids).logits)


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize("spec", SPECS)
def test_it_is_what_the_cache_computes(spec: str) -> None:
    one = subject("llama")
    from_cache, loss = difference(one, fitted(one, spec))
    assert from_cache < EXACT and loss > 1e-4


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize("family", FAMILIES)
def test_in_other_families(family: str) -> None:
    one = subject(family)
    from_cache, loss = difference(one, fitted(one, "pca:rank=0.5"))
    assert from_cache < EXACT and loss > 1e-6


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize("spans", [Spans(sinks=0, recent=0, block=1), Spans(sinks=4, recent=70, block=8)])
def test_with_other_spans(spans: Spans) -> None:
    """Everything but the query's token compressed, and nothing at all."""
    one = subject("llama")
    from_cache, loss = difference(one, fitted(one, "pca:rank=0.5", spans))
    assert from_cache < EXACT and (loss > 1e-4) == (spans.recent == 0)


@pytest.mark.usefixtures("fp64")
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss"])
def test_in_pieces(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_pass, "PIECE", 7)
    one = subject(family)
    from_cache, loss = difference(one, fitted(one, "pca:rank=0.5"))
    assert from_cache < EXACT and loss > 1e-6


@pytest.mark.usefixtures("fp64")
def test_tokens_that_count_are_those_that_meet_codes() -> None:
    one, ids = subject("llama"), token_ids(1, TOKENS)
    plan = fitted(one, "pca:rank=0.5")
    errors = (cached_logits(one.model, one.geometry, plan, ids, 1) - one.model(ids).logits).abs().amax((0, 2))
    first = first_to_meet_codes(plan)
    assert first == 2 + 5 + 8 and float(errors[:first].max()) < EXACT < float(errors[first])
    last = cached_logits(one.model, one.geometry, plan, ids, PROMPT, 7)
    assert worst(last, cached_logits(one.model, one.geometry, plan, ids, PROMPT)[:, -7:]) < EXACT


@pytest.mark.usefixtures("fp64")
def test_its_divergence_is_the_kld_of_kvbench_run() -> None:
    one, ids = subject("llama"), token_ids(2, TOKENS + 1)
    plan, none = fitted(one, "pca:rank=0.5"), parse("none").fit(one.geometry)
    arms = [Arm.of(name, one.model, one.geometry, each) for name, each in (("none", none), ("pca", plan))]
    measured = QualityBench(arms[0], ids, PROMPT, 16).score(arms[1]).kld_mean
    scored = TOKENS - PROMPT
    teacher, klds = Teacher(one.model, scored), []
    for row in ids[:, :-1]:
        student = cached_logits(one.model, one.geometry, plan, row[None], PROMPT, scored)[0]
        klds.append(divergence(teacher(row), log_probabilities(student)).mean())
    assert float(torch.stack(klds).mean()) == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize("spec", ["pca:rank=0.5", "mla:latent=24,rope_dims=8", "pca:rank=0.5+int:bits=4"])
def test_gradients_reach_all_bases_and_no_weight(spec: str) -> None:
    one, ids = subject("llama", torch.float32), token_ids(1, TOKENS)
    bases = Bases(fitted(one, spec))
    logits = cached_logits(one.model, one.geometry, bases.trained(), ids, PROMPT)
    log_probabilities(logits[0])[:, 7].sum().backward()
    assert all(float(each.grad.abs().max()) > 0 for each in bases.parameters.values())
    assert all(each.grad is None for each in one.model.parameters())
    slices = {name.split(".")[1] for name in bases.parameters}
    assert slices == ({"values"} if spec.startswith("mla") else {"keys", "values"}), "a RoPE slice must go on commuting"


@pytest.mark.usefixtures("fp64")
def test_a_healed_mla_can_be_written_as_weights() -> None:
    one, ids = subject("llama"), token_ids(2, TOKENS)
    bases = Bases(fitted(one, "mla:latent=24,rope_dims=8,choice=shared"))
    noise = torch.Generator().manual_seed(0)
    for each in bases.parameters.values():
        each += 0.1 * torch.randn(each.shape, generator=noise, dtype=each.dtype)
    plan = bases.kept()
    made = latent_model(one.model, latent_layers(one.geometry, plan))
    assert worst(made(ids).logits, logits_through_codecs(one.model, one.geometry, plan, ids)) < EXACT
