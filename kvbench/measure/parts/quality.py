"""The quality part: how far the next-token distributions move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from kvbench.measure.parts.part import Inputs, PartSettings
from kvbench.measure.results import Interval
from kvbench.storage.frozen import Frozen

if TYPE_CHECKING:
    from kvbench.compressors.compressor import Compressor
    from kvbench.measure.arms import Arm
    from kvbench.measure.bench import ModelBench
    from kvbench.measure.quality import QualityBench
    from kvbench.texts.windows import Windows


class QualityWorkload(PartSettings):
    """Teacher forcing: each document's first ``prefix`` tokens are prefilled, the rest is scored ``block`` at a time.

    The documents are the ``split``'s: what is quoted comes from "test", what a setting is chosen by from "development".
    ``calibration_windows`` windows of ``calibration_length`` tokens of ``calibration_text`` feed the calibration. The
    first ``decode`` scored tokens of each document are also decoded one by one, through the decode kernels.
    """

    text: str = "essays"
    split: Literal["test", "development"] = "test"
    calibration_text: str = "essays"
    calibration_windows: PositiveInt = 8
    calibration_length: PositiveInt = 1024
    documents: PositiveInt = 2
    length: PositiveInt = 1024
    prefix: PositiveInt = 256
    block: PositiveInt = 256
    decode: NonNegativeInt = 0

    @model_validator(mode="after")
    def _leaves_tokens_to_score(self) -> QualityWorkload:
        if self.prefix + 1 >= self.length:
            raise ValueError(f"prefix ({self.prefix}) must be at least 2 shorter than length ({self.length})")
        scored = self.length - 1 - self.prefix
        if self.decode > scored:
            raise ValueError(f"decode ({self.decode}) must be at most the {scored} scored tokens of a document")
        return self

    @property
    def in_words(self) -> str:
        """Documents, their text, and what was calibrated on."""
        calibration = f"{self.calibration_windows} × {self.calibration_length:,} of {self.calibration_text}"
        return (
            f"{self.documents} × {self.length:,} tokens of {self.text} ({self.split} split), "
            f"first {self.prefix:,} as prompt; calibrated on {calibration}"
        )

    def windows(self, bench: ModelBench, compressor: Compressor, inputs: Inputs) -> dict[str, Windows]:
        """The documents, of which calibration may have seen none."""
        from kvbench.texts.windows import check_disjoint

        scored = bench.evaluation_windows(self.text, self.length, self.documents, self.split)
        check_disjoint(bench.calibration_windows(inputs.calibration), scored)
        return {f"{self.split} {self.text}": scored}

    def measure(self, bench: ModelBench, arm: Arm, inputs: Inputs) -> QualityResult:
        """Score ``arm`` on documents, which workloads share whatever they calibrate on."""
        scored = self.model_dump(exclude={"calibration_text", "calibration_windows", "calibration_length"})
        return bench.shared(_documents, QualityWorkload(**scored)).score(arm)


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


def _documents(bench: ModelBench, workload: QualityWorkload) -> QualityBench:
    """The documents with what the uncompressed model predicts of them."""
    from kvbench.measure.quality import QualityBench

    documents = bench.evaluation_windows(workload.text, workload.length, workload.documents, workload.split)
    ids = documents.ids.to(bench.loaded.model.device)
    none, prefix, block = bench.none(), workload.prefix, workload.block
    return QualityBench(none, ids, prefix, block, documents.document_ids, workload.decode, bench.identity)
