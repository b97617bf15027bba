"""What came out: a trial's record with its memory, speed and quality, where it ran, or why it failed.

Sizes are bytes, times seconds, intervals 95 %. Everything is immutable and validated; sequences are tuples.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BeforeValidator, NonNegativeInt, model_validator

from kvbench.runs.canonical import canonical_json, content, digest
from kvbench.runs.trials import (
    SCHEMA,
    Frozen,
    MemoryWorkload,
    QualityWorkload,
    SpeedWorkload,
    Trial,
    Workload,
)

__all__ = [
    "SCHEMA",
    "Bytes",
    "DecodedResult",
    "Failure",
    "Interval",
    "MemoryResult",
    "MemoryWorkload",
    "Provenance",
    "QualityResult",
    "QualityWorkload",
    "Record",
    "RooflineResult",
    "SpeedResult",
    "SpeedWorkload",
    "Status",
    "Trial",
    "Workload",
]

Status = Literal["ok", "failed", "oom", "timeout", "killed", "interrupted"]


class Interval(Frozen):
    """A 95 % confidence interval."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if self.low > self.high:
            raise ValueError(f"interval is upside down: low {self.low} above high {self.high}")
        return self


class Bytes(Frozen):
    """A cache's allocated bytes by what they hold."""

    payload: NonNegativeInt = 0
    scales: NonNegativeInt = 0
    exact: NonNegativeInt = 0
    positions: NonNegativeInt = 0
    slack: NonNegativeInt = 0
    workspace: NonNegativeInt = 0

    @property
    def total(self) -> int:
        """All kinds together."""
        return self.payload + self.scales + self.exact + self.positions + self.slack + self.workspace


class MemoryResult(Frozen):
    """The cache's size after ``tokens`` tokens in each of ``batch`` sequences. Ratios are against 16-bit K and V."""

    tokens: int
    batch: int
    dtype: str
    allocated: Bytes
    predicted_bytes: int
    prediction_error: float
    """(allocated - predicted) / allocated."""
    model_level_bytes: int
    """Stored once for all caches: bases, codebooks."""
    rope_table_bytes: int
    bytes_per_token: float
    ratio_allocated: float
    ratio_predicted: float
    ratio_claimed: float | None = None
    bits_per_element: float
    bits_with_bases: float | None = None
    """The same with ``model_level_bytes``: what this batch and length take in all."""
    break_even_tokens: int | None = None
    """The shortest sequence that, like every longer one, takes fewer bytes with its bases than 16-bit K and V; None if
    there is none (:func:`kvbench.cache.break_even.break_even_tokens`)."""
    body_bits_per_element: float | None = None
    largest_bytes: int | None = None
    """The most that the cache held while tokens were decoded after the prompt; None where none were."""
    peak_prefill_bytes: int | None = None
    """Over ``baseline_rss_bytes``, with the whole prompt at once."""
    peak_prefill_chunked_bytes: int | None = None
    """The same with the prompt in chunks that are compressed in between; None where it is no longer than one."""
    peak_decode_bytes: int | None = None
    baseline_rss_bytes: int | None = None
    flagged: bool = False
    """True where predicted and allocated bytes differ by more than 1 %."""


class RooflineResult(Frozen):
    """A decode step against the machine's peaks, measured in the same process: bytes, operations, bytes or operations
    per second (:class:`kvbench.measure.roofline.Roofline`). Bounds are the least times of a step with this cache and
    with an uncompressed one."""

    read_bandwidth: float
    peak_operations: float
    weight_bytes: int
    cache_bytes: int
    basis_bytes: int = 0
    none_cache_bytes: int
    operations: int
    none_operations: int
    bound_s: float
    none_bound_s: float
    ceiling: float
    """Speed-up over an uncompressed cache if both ran at their bounds."""
    achieved: float
    """Share of the bound in the measured step."""


class SpeedResult(Frozen):
    """Times of one compressor over whole block cycles. Ratios are speed-ups over ``none`` and ``hf``, whose time per
    token was measured in the same rounds: above 1 means that this compressor is faster
    (:func:`kvbench.measure.cycles.speed_up`)."""

    batch: int
    prompt: int
    steps: int
    cycle: int = 1
    """Steps from one encoding of a block to the next; the timed steps are whole cycles."""
    ttft_s: float
    """``prefill_s``, one row's exact prefill, and ``compress_s``, taking the prompt of the whole batch in."""
    prefill_s: float
    compress_s: float
    tpot_s: float
    """Mean time per output token over all timed steps, those that encode a block among them."""
    tpot_p50_s: float
    tpot_p90_s: float
    tpot_p99_s: float
    encode_s_per_token: float | None = None
    """What encoding adds to the mean step: that of all timed steps minus that of the steps which encode nothing."""
    tokens_per_s: float
    raw_step_s: tuple[float, ...]
    ratio_to_none: float | None = None
    ratio_to_none_interval: Interval | None = None
    ratio_to_hf: float | None = None
    ratio_to_hf_interval: Interval | None = None
    interval_method: str = ""
    """What made both intervals."""
    attention: str
    """What attended to the stored tokens, read back from the live cache (:mod:`kvbench.cache.way`)."""
    allocated: Bytes | None = None
    """Bytes of the timed cache right after the prompt."""
    largest_bytes: int | None = None
    """Its most bytes from then on, walked between turns."""
    kld_mean: float | None = None
    """KLD of the timed steps against ``none``, which decoded the same tokens in the same rounds: what the very cache
    that was timed makes of them."""
    roofline: RooflineResult | None = None


class DecodedResult(Frozen):
    """The first scored tokens of every document, decoded one by one through the decode path.

    ``kld_mean`` and ``block_kld_mean`` are mean KLDs over the same tokens, decoded and scored in blocks, both against
    the uncompressed model scored in blocks."""

    tokens: int
    kld_mean: float
    block_kld_mean: float
    from_blocks_kld: float
    """Mean KL(scored in blocks ‖ decoded) of this compressor: what the kernels' rounding amounts to."""
    attention: str
    """The implementation that ran, read back from the live cache."""


class QualityResult(Frozen):
    """Distance of the compressed model's next-token distributions from the uncompressed model's, in nats."""

    documents: int
    tokens: int
    perplexity: float
    baseline_perplexity: float
    delta_nll: float
    delta_nll_interval: Interval | None = None
    kld_mean: float
    kld_median: float
    kld_p99: float
    kld_max: float
    kld_interval: Interval | None = None
    interval_method: str = ""
    """What made both intervals, or would have of more documents (:mod:`kvbench.measure.statistics`)."""
    same_top1: float
    noise_floor_kld: float
    """KLD of the uncompressed model against itself on another execution path: nothing below it is a difference."""
    per_document_kld: tuple[float, ...]
    document_ids: tuple[str, ...] = ()
    """The documents, in the order of ``per_document_kld``."""
    body_bits: float | None = None
    decoded: DecodedResult | None = None
    """None where the workload does not request it."""


class Provenance(Frozen):
    """Where, when and with what a trial ran. None means that it could not be found out."""

    kvbench: str
    python: str
    packages: dict[str, str]
    torch_build: str
    platform: str
    cpu: str
    cores: int
    threads: int
    memory_total: int
    load_average: tuple[float, float, float] | None = None
    git_sha: str | None = None
    git_dirty: bool | None = None
    device_name: str
    device_memory: int | None = None
    hostname_hash: str
    started: AwareDatetime
    finished: AwareDatetime


def _encodable(text: Any) -> Any:
    """Messages of the operating system may quote bytes that are no UTF-8; a failure must not fail to be recorded."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


Message = Annotated[str, BeforeValidator(_encodable)]


class Failure(Frozen):
    """Why a trial has no result."""

    type: str
    message: Message
    traceback: Message | None = None


class Record(Frozen):
    """A trial's terminal state, one line of ``records.jsonl``. Make one with :meth:`of`."""

    schema_version: int
    id: str
    trial: Trial
    status: Status
    failure: Failure | None = None
    memory: MemoryResult | None = None
    speed: SpeedResult | None = None
    quality: QualityResult | None = None
    solved_for: tuple[float, ...] = ()
    """Bits per element that the compressor was solved for; where it cannot take them, this is its nearest size."""
    provenance: Provenance
    checksum: str
    """sha256 of the canonical JSON of all other fields."""

    @model_validator(mode="after")
    def _is_complete(self) -> Record:
        missing = [part for part in self.trial.workload.parts if getattr(self, part) is None]
        if self.status == "ok" and (missing or self.failure):
            raise ValueError(f"an ok record needs no failure and all of its workload; missing: {missing}")
        if self.status != "ok" and self.failure is None:
            raise ValueError(f"a record with status {self.status!r} needs a failure that says why")
        return self

    @classmethod
    def of(
        cls,
        trial: Trial,
        status: Status,
        provenance: Provenance,
        *,
        failure: Failure | None = None,
        memory: MemoryResult | None = None,
        speed: SpeedResult | None = None,
        quality: QualityResult | None = None,
        solved_for: tuple[float, ...] = (),
    ) -> Record:
        """The record of a trial that has ended, with its id and checksum. Raises ValueError if it is not whole."""
        draft = cls(
            schema_version=SCHEMA,
            id=trial.id,
            trial=trial,
            status=status,
            failure=failure,
            memory=memory,
            speed=speed,
            quality=quality,
            solved_for=solved_for,
            provenance=provenance,
            checksum="",
        )
        return draft.model_copy(update={"checksum": checksum(content(draft))})

    def to_json(self) -> str:
        """One line of canonical JSON, without the newline, with the checksum of what stands in it.

        A record from a file that lacks newer optional fields is written with them.
        """
        fields = content(self)
        return canonical_json(fields | {"checksum": checksum(fields)})


def checksum(fields: dict[str, Any]) -> str:
    """The checksum that belongs to a record given as plain JSON values; a ``checksum`` among them is left out."""
    return digest({name: value for name, value in fields.items() if name != "checksum"})
