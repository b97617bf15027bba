"""The quality part: how far the next-token distributions move."""

from __future__ import annotations

import math
import operator
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

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

    ``joined`` takes windows of the joined test rows for documents, one after the other, as published perplexities do:
    llama.cpp's with ``length`` 512 and ``prefix`` 256, GPTQ's with 2048 and 1 (without each window's second token).
    Windows are then not independent, and nothing has an interval.
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
    joined: Annotated[bool, Field(exclude_if=operator.not_)] = False

    @model_validator(mode="after")
    def _leaves_tokens_to_score(self) -> QualityWorkload:
        if self.prefix + 1 >= self.length:
            raise ValueError(f"prefix ({self.prefix}) must be at least 2 shorter than length ({self.length})")
        if self.joined and self.split != "test":
            raise ValueError("joined windows are of the test split; leave split or joined out")
        scored = self.length - 1 - self.prefix
        if self.decode > scored:
            raise ValueError(f"decode ({self.decode}) must be at most the {scored} scored tokens of a document")
        return self

    @property
    def in_words(self) -> str:
        """Documents, their text, and what was calibrated on."""
        calibration = f"{self.calibration_windows} × {self.calibration_length:,} of {self.calibration_text}"
        cut = "joined test rows" if self.joined else f"{self.split} split"
        return (
            f"{self.documents} × {self.length:,} tokens of {self.text} ({cut}), "
            f"first {self.prefix:,} as prompt; calibrated on {calibration}"
        )

    def windows(self, bench: ModelBench, compressor: Compressor, inputs: Inputs) -> dict[str, Windows]:
        """The documents, of which calibration may have seen none."""
        from kvbench.texts.windows import check_disjoint

        scored = self.windows_of(bench)
        check_disjoint(bench.calibration_windows(inputs.calibration), scored)
        return {f"{self.split} {self.text}": scored}

    def windows_of(self, bench: ModelBench) -> Windows:
        """What is scored."""
        if self.joined:
            return bench.joined_windows(self.text, self.length, self.documents)
        return bench.evaluation_windows(self.text, self.length, self.documents, self.split)

    def measure(self, bench: ModelBench, arm: Arm, inputs: Inputs) -> QualityResult:
        """Score ``arm`` on documents, which workloads share whatever they calibrate on."""
        from kvbench.texts.overlap import overlap

        scored = self.model_dump(exclude={"calibration_text", "calibration_windows", "calibration_length"})
        quality = bench.shared(_documents, QualityWorkload(**scored))
        shares = overlap(bench.calibration_windows(inputs.calibration).ids, quality.ids)
        result = quality.score(arm).model_copy(update={"calibration_overlap": fmean(shares)})
        return result.without_intervals() if self.joined else result


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


LEVELS = (1.0, 5.0, 10.0, 50.0, 90.0, 95.0, 99.0, 99.9)
"""Per cent at which percentiles over tokens are taken."""


class KldAtDistance(Frozen):
    """Mean KLD of the tokens ``first``…``last`` after the prompt, where compression of it ends."""

    first: int
    last: int
    tokens: int
    kld_mean: float


class TokenStatistics(Frozen):
    """Over all scored tokens, as llama.cpp's ``--kl-divergence`` has them; percentiles are those of :data:`LEVELS`."""

    kld_standard_error: float | None
    """As if tokens were independent of each other, which they are not: ``kld_interval`` is over documents."""
    kld_percentiles: tuple[float, ...]
    top5_overlap: float
    """Mean share of the uncompressed model's five likeliest tokens among the compressed model's."""
    delta_p_mean: float
    """Of the probability of the document's next token, compressed less uncompressed."""
    delta_p_rms: float
    delta_p_percentiles: tuple[float, ...]
    nll_correlation: float | None
    """Pearson's, of the tokens' negative log-likelihoods; None where they do not vary."""
    kld_by_distance: tuple[KldAtDistance, ...]


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
    statistics: TokenStatistics | None = None
    """None in records that are older."""
    calibration_overlap: float | None = None
    """Share, 0…1, of the scored documents' runs of 13 tokens that the calibration windows have, too."""
    decoded: DecodedResult | None = None
    """None where the workload does not request it."""

    def without_intervals(self) -> QualityResult:
        """The same, of windows that are not independent of each other."""
        return self.model_copy(update={"delta_nll_interval": None, "kld_interval": None, "interval_method": ""})

    @property
    def perplexity_ratio(self) -> float:
        """Compressed over uncompressed."""
        return math.exp(self.delta_nll)


def _documents(bench: ModelBench, workload: QualityWorkload) -> QualityBench:
    """The documents with what the uncompressed model predicts of them."""
    from kvbench.measure.quality import QualityBench

    documents = workload.windows_of(bench)
    ids = documents.ids.to(bench.loaded.model.device)
    none, prefix, block = bench.none(), workload.prefix, workload.block
    names = () if workload.joined else documents.document_ids  # a window of joined rows is of no one document
    return QualityBench(none, ids, prefix, block, names, workload.decode, bench.identity)
