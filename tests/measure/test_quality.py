"""Quality: what is scored is aligned, lossless means zero, and neither block size nor memory limits are knobs."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from driving import Subject, calibrated, subject, token_ids
from fp64 import one_thread
from kept_kernels import cache_with_kernels
from torch import Tensor

from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure import quality as quality_module
from kvbench.measure import token_statistics
from kvbench.measure.arms import Arm
from kvbench.measure.parts.quality import QualityResult
from kvbench.measure.quality import QualityBench
from kvbench.measure.results import Interval
from kvbench.measure.statistics import mean_interval
from kvbench.models.loading import LoadedModel

__all__ = ["one_thread"]

LENGTH, PREFIX = 120, 24
IDS = token_ids(2, LENGTH)
LOSSY = "int:bits=2,sinks=2,recent=4,block=4"


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def arm_of(one: Subject, spec: str) -> Arm:
    parsed = parse(spec)
    statistics = calibrated(one) if parsed.needs_calibration else None
    plan = None if parsed.baseline == "hf" else parsed.fit(one.geometry, statistics)
    return Arm.of(spec, one.model, one.geometry, plan)


def score(one: Subject, spec: str, block: int = 32, ids: Tensor = IDS, prefix: int = PREFIX) -> QualityResult:
    return QualityBench(arm_of(one, "none"), ids, prefix, block).score(arm_of(one, spec))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_uncompressed_is_no_distance_from_itself(family: str):
    scored = score(subject(family, torch.float32), "none")
    assert scored.kld_max == scored.kld_mean == scored.delta_nll == 0 and scored.same_top1 == 1
    assert scored.perplexity == scored.baseline_perplexity
    assert scored.documents == 2 and scored.tokens == 2 * (LENGTH - PREFIX - 1)
    assert scored.per_document_kld == (0, 0) and scored.kld_interval is scored.delta_nll_interval is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_stock_path_is_within_the_noise_floor_which_is_tiny(family: str):
    scored = score(subject(family, torch.float32), "hf")
    assert 0 <= scored.noise_floor_kld < 1e-9 and 0 <= scored.kld_mean < 1e-9 and scored.same_top1 == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_perplexity_is_that_of_the_stock_model_over_the_tokens_after_the_prefix(family: str):
    one = subject(family, torch.float32)
    losses = []
    for row in IDS:
        logits = one.model(row[None]).logits[0].double()
        for position in range(PREFIX, LENGTH - 1):  # the token at `position` predicts the next one
            losses.append(float(torch.logsumexp(logits[position], 0) - logits[position, row[position + 1]]))
    scored = score(one, "none")
    assert scored.tokens == len(losses)
    assert scored.baseline_perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-6)


def test_divergence_is_that_of_two_full_distributions():
    one = subject("llama", torch.float32)
    scored = score(one, LOSSY, block=1, ids=IDS[:1])
    none, arm = (arm_of(one, spec) for spec in ("none", LOSSY))
    logits = []
    for each in (none, arm):
        with each.entered():
            cache = each.new_cache()
            each.forward(IDS[:1, :PREFIX], cache)
            logits.append(torch.cat([each.forward(IDS[:1, i : i + 1], cache)[0] for i in range(PREFIX, LENGTH - 1)]))
    p, q = (torch.log_softmax(scores.double(), -1) for scores in logits)
    kld = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    assert scored.kld_mean == pytest.approx(float(kld.mean()), rel=1e-4)
    assert scored.kld_max == pytest.approx(float(kld.max()), rel=1e-4)
    assert scored.same_top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert scored.kld_interval is None, "one document says nothing about how documents differ"


@pytest.mark.parametrize("spec", [LOSSY, "kvtc:bits=2,sinks=2,recent=4,block=4", "snapkv:budget=0.5,recent=4,block=4"])
def test_block_size_is_no_knob(spec: str):
    one = subject("llama", torch.float32)
    small, large = score(one, spec, block=16), score(one, spec, block=64)
    assert small.kld_mean > 1e-5
    for name in ("kld_mean", "kld_median", "kld_p99", "kld_max", "perplexity", "same_top1"):
        assert getattr(small, name) == pytest.approx(getattr(large, name), rel=1e-3), name


def test_fewer_bits_are_further_away():
    one = subject("llama", torch.float32)
    distances = [score(one, f"int:bits={bits},sinks=2,recent=4,block=4").kld_mean for bits in (8, 4, 2)]
    assert distances == sorted(distances) and distances[0] > 0


def test_documents_are_pooled_by_token_and_shown_one_by_one():
    one = subject("llama", torch.float32)
    both = score(one, LOSSY)
    alone = [score(one, LOSSY, ids=row[None]) for row in IDS]
    assert both.per_document_kld == pytest.approx([single.kld_mean for single in alone])
    assert both.kld_mean == pytest.approx(sum(both.per_document_kld) / 2)
    assert both.kld_interval is None and both.interval_method == "hall-t97", "two documents say little of others"


def test_intervals_are_made_of_one_value_a_document():
    one = subject("llama", torch.float32)
    ids = torch.randint(0, one.model.config.vocab_size, (12, 20), generator=torch.Generator().manual_seed(1))
    scored = score(one, LOSSY, ids=ids, prefix=12)
    kld, delta = scored.kld_interval, scored.delta_nll_interval
    assert kld == Interval.of(mean_interval(scored.per_document_kld)) and delta is not None
    assert kld.low < scored.kld_mean < kld.high and delta.low < scored.delta_nll < delta.high


def test_baselines_too_large_to_keep_are_computed_again_with_the_same_result(monkeypatch: pytest.MonkeyPatch):
    one = subject("llama", torch.float32)
    kept = score(one, LOSSY)
    monkeypatch.setattr(quality_module, "DISTRIBUTION_BYTES", 4 * (LENGTH - PREFIX - 1) * one.model.config.vocab_size)
    bench = QualityBench(arm_of(one, "none"), IDS, PREFIX, 32)
    assert bench.score(arm_of(one, LOSSY)) == kept
    assert [document.output is None for document in bench.documents()] == [True, False]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_prompts_and_baselines_are_kept_on_disk_under_what_they_depend_on(
    family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("KVBENCH_CACHE", cache_with_kernels(tmp_path / "cache"))
    one = subject(family, torch.float32)  # the logits of gemma2 are capped behind the output layer
    none, arm, passes = arm_of(one, "none"), arm_of(one, LOSSY), []
    fresh = QualityBench(none, IDS, PREFIX, 32).score(arm)
    assert QualityBench(none, IDS, PREFIX, 32, identity="a").score(arm) == fresh
    forward = Arm.forward
    monkeypatch.setattr(Arm, "forward", lambda self, *rest: passes.append(self.name) or forward(self, *rest))
    assert QualityBench(none, IDS, PREFIX, 32, identity="a").score(arm) == fresh
    assert "none" not in passes
    QualityBench(none, IDS, PREFIX, 32, identity="b").score(arm)
    assert "none" in passes


def test_baselines_are_computed_once_for_all_compressors(monkeypatch: pytest.MonkeyPatch):
    one = subject("llama", torch.float32)
    none, arm = arm_of(one, "none"), arm_of(one, LOSSY)
    bench, passes = QualityBench(none, IDS, PREFIX, 32), []
    forward = Arm.forward
    monkeypatch.setattr(Arm, "forward", lambda self, *rest: passes.append(self.name) or forward(self, *rest))
    first = bench.score(arm)
    assert bench.score(arm) == first
    assert passes.count(LOSSY) == 2 * passes.count("none") > 0


def test_logits_that_are_not_finite_are_refused():
    one = subject("llama", torch.float32, layers=1)
    broken = one.model.lm_head.weight
    kept = broken.clone()
    broken[5] = float("nan")
    try:
        with pytest.raises(KvbenchError, match=r"none: the model's logits are not finite; check its weights and dtype"):
            score(one, LOSSY)
    finally:
        broken.copy_(kept)


def test_a_measurement_that_breaks_off_leaves_the_model_stock(monkeypatch: pytest.MonkeyPatch):
    one = subject("llama", torch.float32)
    before = one.model(IDS[:1]).logits

    def broken(*_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    bench = QualityBench(arm_of(one, "none"), IDS, PREFIX, 32)
    monkeypatch.setattr(token_statistics, "divergence", broken)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        bench.score(arm_of(one, LOSSY))
    assert interrupt and torch.equal(one.model(IDS[:1]).logits, before)
    assert not any(module._forward_pre_hooks for module in one.model.modules())


@pytest.mark.model
def test_default_model_reads_essays_as_well_as_ever(smollm2: LoadedModel):
    from kvbench.hooks.geometry import probe_geometry
    from kvbench.texts.windows import windows

    geometry = probe_geometry(smollm2.model)
    none, int8 = (
        Arm.of(spec, smollm2.model, geometry, parse(spec).fit(geometry)) for spec in ("none", "int:bits=8,recent=16")
    )
    ids = windows("essays", "test", smollm2.tokenizer, 192, 1).ids
    scored = QualityBench(none, ids, 96, 96).score(int8)
    assert 10 < scored.baseline_perplexity < 100, "a wrong alignment of targets would give thousands"
    assert scored.noise_floor_kld < 1e-7 < scored.kld_mean < 2e-3 and scored.same_top1 > 0.95
