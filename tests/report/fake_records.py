"""Records as a real run could have left them: two models, three workloads, trials that failed. Numbers are invented,
close to what small models give."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kvbench.compressors.methods.none import IN_16_BIT
from kvbench.measure.parts.memory import MemoryResult, MemoryWorkload
from kvbench.measure.parts.quality import (
    DecodedResult,
    KldAtDistance,
    QualityResult,
    QualityWorkload,
    TokenStatistics,
)
from kvbench.measure.parts.speed import RooflineResult, SpeedResult, SpeedWorkload
from kvbench.measure.results import Bytes, Interval
from kvbench.runs.records import Failure, Provenance, Record
from kvbench.runs.trials import Trial, Workload

SMOLLM2 = "smollm2-135m-instruct-q4_1"
GEMMA = "gemma-3-270m-q4_k_m"
ELEMENTS = 30 * 2 * 3 * 64
"""K and V elements per token of SmolLM2-135M."""

WHOLE = Workload(
    name="essays-2k",
    quality=QualityWorkload(documents=8, length=2048, prefix=512, decode=96),
    speed=SpeedWorkload(prompt=2048, steps=32, rounds=9),
    memory=MemoryWorkload(prompt=2048),
)
OTHER_DOMAIN = Workload(name="other-domain", quality=QualityWorkload(text="pydoc", documents=4))
BATCH = Workload(name="batch-8", speed=SpeedWorkload(batch=8, steps=32, rounds=9), memory=MemoryWorkload(batch=8))

START = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
MACHINE = Provenance(
    kvbench="0.1.0",
    python="3.11.9",
    packages={"torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.1", "numba": "0.63.1"},
    torch_build="2.13.0+cpu",
    platform="Linux 6.8.0 x86_64",
    cpu="AMD EPYC 7B13",
    cores=2,
    threads=2,
    memory_total=8 << 30,
    load_average=(0.4, 0.3, 0.2),
    git_sha="e096c09" + "0" * 33,
    git_dirty=False,
    device_name="cpu",
    hostname_hash="5f1d" * 4,
    started=START,
    finished=START + timedelta(minutes=3),
)


@dataclass(frozen=True)
class Outcome:
    """The numbers that differ between compressors."""

    spec: str
    bits: float
    """Of the compressed body; 32 is no compression of float32."""
    kld: float
    top1: float
    speed_up: float
    """Over ``none``."""
    claimed: float | None = None


OUTCOMES = (
    Outcome("none", 32, 0.0, 1.0, 1.0),
    Outcome("hf", 32, 2.1e-11, 1.0, 0.62),
    Outcome("int:bits=8", 8.5, 0.00021, 0.991, 1.92, 2.0),
    Outcome("int:bits=4", 4.5, 0.053, 0.861, 2.31, 4.0),
    Outcome("kivi:bits=4", 5.0, 0.012, 0.931, 1.71, 4.0),
    Outcome("kivi:bits=2", 3.0, 0.452, 0.608, 1.78, 8.0),
    Outcome("pca:rank=0.75", 24.0, 0.062, 0.852, 1.03, 1.33),
    Outcome("pca:rank=0.5", 16.0, 0.333, 0.674, 1.004, 2.0),
    Outcome("palu:rank=0.5", 16.0, 0.241, 0.712, 0.93, 2.0),
    Outcome("kvtc:bits=4", 4.02, 0.0062, 0.957, 0.81, 4.0),
    Outcome("kvtc:bits=3", 3.02, 0.0167, 0.929, 0.84, 5.33),
    Outcome("kvtc:bits=2", 2.02, 0.0661, 0.858, 0.88, 8.0),
    Outcome("pca:rank=0.5+int:bits=4", 2.25, 0.352, 0.668, 1.41, 8.0),
)

NONE_IN_16_BIT = Outcome(IN_16_BIT, 16, 3.1e-8, 1.0, 1.31)
"""A baseline that not every run has among its compressors."""


def trial(spec: str, workload: Workload = WHOLE, model: str = SMOLLM2) -> Trial:
    """A trial that only names what it would run."""
    return Trial(
        model=model,
        weights_sha256="ab" * 32,
        compressor=spec,
        code="cd" * 8,
        workload=workload,
        dtype="float32",
        device="cpu",
        threads=2,
        seed=0,
        text_sha256={"essays": "ef" * 32},
    )


def memory(outcome: Outcome, workload: MemoryWorkload) -> MemoryResult:
    """68 of the tokens are exact float32; the prediction misses for ``palu`` to show a flag."""
    tokens = workload.prompt + workload.steps
    elements = ELEMENTS * tokens * workload.batch
    share = 68 / tokens if outcome.bits < 32 else 1.0
    exact = int(elements * share * 4)
    body = int(elements * (1 - share) * outcome.bits / 8)
    scales = body // 9 if outcome.bits < 16 else 0
    allocated = Bytes(payload=body - scales, scales=scales, exact=exact, positions=4 * tokens, workspace=1 << 16)
    flagged = outcome.spec.startswith("palu")
    predicted = int(allocated.total * (0.962 if flagged else 0.9995))
    sixteen_bits = 2 * elements
    bases = 30 * 2 * 192 * 192 * 2 if ":" in outcome.spec and "int:" not in outcome.spec else 0
    return MemoryResult(
        tokens=tokens,
        batch=workload.batch,
        dtype="float32",
        allocated=allocated,
        predicted_bytes=predicted,
        prediction_error=1 - predicted / allocated.total,
        model_level_bytes=bases,
        rope_table_bytes=0,
        bytes_per_token=allocated.total / tokens / workload.batch,
        ratio_allocated=sixteen_bits / allocated.total,
        ratio_predicted=sixteen_bits / predicted,
        ratio_claimed=outcome.claimed,
        bits_per_element=8 * allocated.total / elements,
        bits_with_bases=8 * (allocated.total + bases) / elements,
        break_even_tokens=None if outcome.bits >= 16 else 300 + bases // 10_000,
        body_bits_per_element=outcome.bits if outcome.bits < 32 else None,
        peak_prefill_bytes=(1210 << 20) + allocated.total,
        largest_bytes=allocated.total + (1 << 20),
        peak_prefill_chunked_bytes=(760 << 20) + allocated.total,
        peak_decode_bytes=(980 << 20) + allocated.total,
        baseline_rss_bytes=900 << 20,
        flagged=flagged,
    )


def speed(outcome: Outcome, workload: SpeedWorkload) -> SpeedResult:
    """Around 43 ms a token for ``none``, with intervals of a few per cent."""
    tpot = 0.0432 * (1 + 0.12 * (workload.batch - 1)) / outcome.speed_up
    to_16_bit, to_hf = outcome.speed_up / 1.31, outcome.speed_up / 0.62
    return SpeedResult(
        batch=workload.batch,
        prompt=workload.prompt,
        steps=workload.steps,
        ttft_s=4.31 + (0.4 if outcome.bits < 32 else 0.0),
        prefill_s=4.27,
        compress_s=0.4 if outcome.bits < 32 else 0.0,
        tpot_s=tpot,
        tpot_p50_s=tpot,
        tpot_p90_s=1.06 * tpot,
        tpot_p99_s=1.21 * tpot,
        encode_s_per_token=0.03 * tpot if outcome.bits < 32 else None,
        tokens_per_s=workload.batch / tpot,
        raw_step_s=tuple(tpot * (1 + 0.002 * step) for step in range(workload.steps)),
        ratio_to_none=outcome.speed_up,
        ratio_to_none_interval=around(outcome.speed_up, 0.0 if outcome.spec == "none" else 0.034),
        ratio_to_16_bit=to_16_bit,
        ratio_to_16_bit_interval=around(to_16_bit, 0.0 if outcome.spec == IN_16_BIT else 0.039),
        ratio_to_hf=to_hf,
        ratio_to_hf_interval=around(to_hf, 0.0 if outcome.spec == "hf" else 0.046),
        attention="stock" if outcome.spec == "hf" else "numba int",
        allocated=Bytes(payload=int(ELEMENTS * workload.prompt * workload.batch * outcome.bits / 8)),
        kld_mean=1.1 * outcome.kld,
        roofline=roofline(outcome, workload, tpot),
    )


def roofline(outcome: Outcome, workload: SpeedWorkload, tpot: float) -> RooflineResult:
    """20 GB/s; the step reads 538 MB of weights and the cache."""
    weights, none = 538_000_000, 4 * ELEMENTS * workload.prompt * workload.batch
    cache = int(none * outcome.bits / 32)
    bound, none_bound = (weights + cache) / 20e9, (weights + none) / 20e9
    return RooflineResult(
        read_bandwidth=20e9,
        peak_operations=1.2e11,
        weight_bytes=weights,
        cache_bytes=cache,
        none_cache_bytes=none,
        operations=300_000_000,
        none_operations=300_000_000,
        bound_s=bound,
        none_bound_s=none_bound,
        ceiling=none_bound / bound,
        achieved=bound / tpot,
    )


def quality(outcome: Outcome, workload: QualityWorkload, harder: float = 1.0) -> QualityResult:
    """KLD times ``harder``; the difference in negative log-likelihood follows it."""
    kld = outcome.kld * harder
    delta = 0.6 * kld
    return QualityResult(
        documents=workload.documents,
        tokens=workload.documents * (workload.length - workload.prefix - 1),
        perplexity=28.91 * 2.718281828**delta,
        baseline_perplexity=28.91,
        delta_nll=delta,
        delta_nll_interval=around(delta, 0.12),
        kld_mean=kld,
        kld_median=0.6 * kld,
        kld_p99=7.4 * kld,
        kld_max=31 * kld,
        kld_interval=around(kld, 0.22),
        same_top1=outcome.top1,
        noise_floor_kld=3.4e-11,
        per_document_kld=(0.9 * kld, 1.1 * kld),
        body_bits=outcome.bits if outcome.bits < 32 else None,
        statistics=statistics(kld),
        calibration_overlap=0.0012,
        decoded=decoded(outcome, workload, kld) if workload.decode else None,
    )


def statistics(kld: float) -> TokenStatistics:
    """Two bins of distance; percentiles that rise."""
    return TokenStatistics(
        kld_standard_error=0.02 * kld,
        kld_percentiles=tuple(kld * factor for factor in (0.01, 0.05, 0.1, 0.6, 2, 3, 7.4, 20)),
        top5_overlap=1 - kld / 3,
        delta_p_mean=-0.1 * kld,
        delta_p_rms=0.3 * kld**0.5,
        delta_p_percentiles=tuple(kld * factor for factor in (-3, -2, -1, 0, 1, 2, 3, 4)),
        nll_correlation=1 - kld / 9,
        kld_by_distance=(
            KldAtDistance(first=1, last=32, tokens=64, kld_mean=1.2 * kld),
            KldAtDistance(first=33, last=128, tokens=192, kld_mean=0.9 * kld),
        ),
    )


def decoded(outcome: Outcome, workload: QualityWorkload, kld: float) -> DecodedResult:
    """The first tokens: less of the context is compressed then."""
    return DecodedResult(
        tokens=workload.documents * workload.decode,
        kld_mean=0.7002 * kld,
        block_kld_mean=0.7 * kld,
        from_blocks_kld=1e-4 * kld,
        attention="stock" if outcome.spec == "hf" else "reference",
    )


def around(value: float, share: float) -> Interval:
    """The value with this share of it to both sides."""
    return Interval(low=value * (1 - share), high=value * (1 + share))


def ok(outcome: Outcome, workload: Workload = WHOLE, model: str = SMOLLM2, harder: float = 1.0) -> Record:
    """A whole record."""
    return Record.of(
        trial(outcome.spec, workload, model),
        "ok",
        MACHINE,
        memory=memory(outcome, workload.memory) if workload.memory else None,
        speed=speed(outcome, workload.speed) if workload.speed else None,
        quality=quality(outcome, workload.quality, harder) if workload.quality else None,
    )


def broken(
    spec: str,
    status: str = "failed",
    message: str = "it broke",
    kind: str = "RuntimeError",
    model: str = SMOLLM2,
    workload: Workload = WHOLE,
) -> Record:
    """A trial without a result."""
    failure = Failure(
        type=kind, message=message, traceback=f"Traceback (most recent call last):\n  …\n{kind}: {message}"
    )
    return Record.of(trial(spec, workload, model), status, MACHINE, failure=failure)  # type: ignore[arg-type]


def a_run() -> list[Record]:
    """SmolLM2 under three workloads and Gemma under one; one trial failed, one ran out of memory."""
    records = [ok(outcome) for outcome in OUTCOMES]
    records.append(
        broken(
            "kvtc:bits=1",
            message="cannot allocate 1 bit: the water level is below the smallest codebook;\nuse bits=2 or more",
            kind="KvbenchError",
        )
    )
    records += [ok(outcome, OTHER_DOMAIN, harder=2.7) for outcome in OUTCOMES]
    records += [ok(outcome, BATCH) for outcome in OUTCOMES[:-1]]
    records.append(
        broken(
            OUTCOMES[-1].spec,
            "oom",
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 6442450944 bytes",
            workload=BATCH,
        )
    )
    return records + [ok(outcome, model=GEMMA, harder=1.6) for outcome in OUTCOMES if "palu" not in outcome.spec]
