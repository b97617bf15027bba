"""A trial and a whole record of it, in parts, for tests that change some."""

from __future__ import annotations

from datetime import UTC, datetime

from kvbench.measure.parts.memory import MemoryResult, MemoryWorkload
from kvbench.measure.parts.quality import QualityResult, QualityWorkload
from kvbench.measure.parts.speed import SpeedResult, SpeedWorkload
from kvbench.measure.results import Bytes, Interval
from kvbench.runs.records import Provenance
from kvbench.runs.trials import Trial, Workload

WORKLOAD = Workload(name="w", quality=QualityWorkload(), speed=SpeedWorkload(), memory=MemoryWorkload())
TRIAL = Trial(
    model="random:llama",
    weights_sha256="ab" * 32,
    compressor="int:bits=4",
    code="cd" * 8,
    workload=WORKLOAD,
    dtype="float32",
    device="cpu",
    threads=2,
    seed=0,
    text_sha256={"essays": "ef" * 32},
)
MEMORY = MemoryResult(
    tokens=2080,
    batch=1,
    dtype="float32",
    allocated=Bytes(payload=1000, scales=100, exact=50, positions=8, slack=4, workspace=2),
    predicted_bytes=1160,
    prediction_error=4 / 1164,
    model_level_bytes=0,
    rope_table_bytes=0,
    bytes_per_token=1164 / 2080,
    ratio_allocated=3.1,
    ratio_predicted=3.2,
    ratio_claimed=4.0,
    bits_per_element=5.1,
)
SPEED = SpeedResult(
    batch=1,
    prompt=2048,
    steps=16,
    ttft_s=1.5,
    prefill_s=1.4,
    compress_s=0.1,
    tpot_s=0.02,
    tpot_p50_s=0.02,
    tpot_p90_s=0.03,
    tpot_p99_s=0.04,
    tokens_per_s=50.0,
    raw_step_s=tuple(0.02 + 1e-4 * step for step in range(80)),
    ratio_to_none=1.1,
    ratio_to_none_interval=Interval(low=1.0, high=1.2),
    attention="reference",
)
QUALITY = QualityResult(
    documents=2,
    tokens=1536,
    perplexity=29.0,
    baseline_perplexity=28.9,
    delta_nll=0.003,
    kld_mean=0.012,
    kld_median=0.01,
    kld_p99=0.1,
    kld_max=0.5,
    kld_interval=Interval(low=0.01, high=0.014),
    same_top1=0.93,
    noise_floor_kld=1e-9,
    per_document_kld=(0.011, 0.013),
)
PROVENANCE = Provenance(
    kvbench="0.1.0",
    python="3.11.9",
    packages={"torch": "2.13.0", "transformers": "5.23.0"},
    torch_build="cpu",
    platform="Linux",
    cpu="a processor",
    cores=2,
    threads=2,
    memory_total=8 << 30,
    device_name="cpu",
    hostname_hash="0" * 16,
    started=datetime(2026, 11, 21, 12, tzinfo=UTC),
    finished=datetime(2026, 11, 21, 12, 1, tzinfo=UTC),
)
