"""The speed part: times of decoding, and speed-ups over the baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt

from kvbench.measure.parts.decoding import DecodingWorkload
from kvbench.measure.parts.part import Inputs
from kvbench.measure.results import Bytes, Interval
from kvbench.storage.frozen import Frozen

if TYPE_CHECKING:
    from kvbench.measure.arms import Arm
    from kvbench.measure.bench import ModelBench
    from kvbench.measure.speed import SpeedBench
    from kvbench.texts.splits import Split


class SpeedWorkload(DecodingWorkload):
    """Decoding in turns with the baselines, by ``batch`` rows."""

    part: ClassVar[str] = "speed"
    batch: PositiveInt = 1

    @property
    def in_words(self) -> str:
        """Batch, prompt and timed steps."""
        return f"batch {self.batch}, prompt {self.prompt:,}, {self.steps} steps × {self.rounds} rounds"

    def measure(self, bench: ModelBench, arm: Arm, inputs: Inputs) -> SpeedResult:
        """Time ``arm`` against the baselines."""
        timed = bench.shared(_document, self, inputs.text, inputs.split, inputs.seed)
        return timed.run(arm, bench.baselines(arm.reading))


class RooflineResult(Frozen):
    """A decode step against the machine's peaks, measured in the same process: bytes, operations, bytes or operations
    per second (:func:`kvbench.measure.roofline.roofline`). Bounds are the least times of a step with this cache and
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
    """Times of one compressor over whole block cycles. Ratios are speed-ups over ``none``, over ``none`` in
    16 bit and over ``hf``, whose time per token was measured in the same rounds: above 1 means that this one is faster
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
    ratio_to_16_bit: float | None = None
    """Over kvbench's uncompressed cache in 16 bit, which is ``none`` itself in a 16-bit model."""
    ratio_to_16_bit_interval: Interval | None = None
    ratio_to_hf: float | None = None
    ratio_to_hf_interval: Interval | None = None
    interval_method: str = ""
    """What made the intervals."""
    attention: str
    """What attended to the stored tokens, read back from the live cache (:mod:`kvbench.cache.reads`)."""
    allocated: Bytes | None = None
    """Bytes of the timed cache right after the prompt."""
    largest_bytes: int | None = None
    """Its most bytes from then on, walked after every step."""
    kld_mean: float | None = None
    """KLD of the timed steps against ``none``, which decoded the same tokens in the same rounds: what the very cache
    that was timed makes of them."""
    roofline: RooflineResult | None = None


def _document(bench: ModelBench, workload: SpeedWorkload, text: str, split: Split, seed: int) -> SpeedBench:
    """The document that all arms decode."""
    from kvbench.measure.speed import SpeedBench

    ids, steps = bench.prompt_ids(text, workload.tokens, split), workload.steps
    return SpeedBench(bench.none(), ids, workload.batch, steps, workload.rounds, workload.warmup, seed)
