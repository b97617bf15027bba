"""The capacity part: the largest batch whose cache fits a budget of bytes, and the tokens a second of that batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeInt, PositiveInt

from kvbench.measure.parts.decoding import DecodingWorkload
from kvbench.measure.parts.part import Inputs
from kvbench.measure.results import Bytes, Interval
from kvbench.storage.frozen import Frozen
from kvbench.storage.units import ByteCount, bytes_in_words

if TYPE_CHECKING:
    from kvbench.measure.arms import Arm
    from kvbench.measure.bench import ModelBench
    from kvbench.measure.capacity import CapacityBench
    from kvbench.texts.splits import Split


class CapacityWorkload(DecodingWorkload):
    """As many rows as a ``budget`` of bytes (``512MiB``) holds the cache of, but at most ``max_batch``, decode what
    follows ``prompt`` tokens, in turns with the baselines at batches of theirs for the same budget.

    Everything that the cache has allocated at any step of the run counts, and once the bases and codebooks that all
    rows share. The memory of a step in flight (activations, logits) does not count.
    """

    part: ClassVar[str] = "capacity"
    budget: ByteCount = 2**30
    prompt: PositiveInt = 4096
    steps: PositiveInt = 4
    rounds: PositiveInt = 8
    warmup: NonNegativeInt = 1
    max_batch: PositiveInt | None = None

    @property
    def in_words(self) -> str:
        """Budget, prompt and timed steps."""
        most = "" if self.max_batch is None else f", at most {self.max_batch:,} rows"
        return (
            f"caches within {bytes_in_words(self.budget)}{most}, prompt {self.prompt:,}, "
            f"{self.steps} steps × {self.rounds} rounds"
        )

    def measure(self, bench: ModelBench, arm: Arm, inputs: Inputs) -> CapacityResult:
        """Fill the budget with rows of ``arm`` and of every baseline, and time them."""
        document = bench.shared(_document, self, inputs.text, inputs.split, inputs.seed)
        return document.run(arm, bench.baselines(arm.reading))


class BaselineCapacity(Frozen):
    """A baseline in the same budget and the same rounds. ``ratio``: how many times its tokens a second the compressor
    decodes."""

    name: str
    batch: PositiveInt
    largest_bytes: int
    tokens_per_s: float
    ratio: float
    ratio_interval: Interval | None = None


class CapacityResult(Frozen):
    """The largest batch within a budget, and what it decodes. Bytes are walked from the caches that were timed."""

    budget: int
    prompt: int
    batch: PositiveInt
    capped: bool = False
    """True where the workload's ``max_batch`` is the batch, not the budget's."""
    allocated: Bytes
    """Of the batch's cache, right after the prompt."""
    largest_bytes: int
    """The most that it had allocated after any step."""
    model_level_bytes: int = 0
    """Bases and codebooks, stored once; they count within the budget."""
    one_more_bytes: int | None = None
    """The most that a batch of one more row takes, with bases: by the bytes of a row, the difference of what caches of
    one and of two rows had allocated at the same step."""
    steps: int
    cycle: int = 1
    """Steps from one encoding of a block to the next; the timed steps are whole cycles."""
    step_s: float
    """Mean over all timed steps."""
    tokens_per_s: float
    """Batch / ``step_s``."""
    tokens_per_s_per_gib: float
    """Per GiB that the batch takes at most, bases included."""
    raw_step_s: tuple[float, ...] = ()
    baselines: tuple[BaselineCapacity, ...] = ()
    """Those of which a row fits the budget."""
    interval_method: str = ""
    """What made the intervals of the ratios, or would have of more block cycles."""
    attention: str
    """What attended to the stored tokens, read back from the live cache (:mod:`kvbench.cache.reads`)."""
    kld_mean: float | None = None
    """KLD of the timed steps' first row against ``none``, which decoded the same tokens in the same rounds."""

    @property
    def taken_bytes(self) -> int:
        """The most that the batch takes of the budget."""
        return self.largest_bytes + self.model_level_bytes

    def over(self, name: str) -> BaselineCapacity | None:
        """The baseline of that name, if it was measured."""
        return next((baseline for baseline in self.baselines if baseline.name == name), None)


def _document(bench: ModelBench, workload: CapacityWorkload, text: str, split: Split, seed: int) -> CapacityBench:
    """The document that all arms decode, and what was learned of the bytes of each."""
    from kvbench.measure.capacity import CapacityBench
    from kvbench.measure.speed import SpeedBench

    ids, steps = bench.prompt_ids(text, workload.tokens, split), workload.steps
    decoding = SpeedBench(bench.none(), ids, 1, steps, workload.rounds, workload.warmup, seed)
    return CapacityBench(decoding, workload.budget, workload.max_batch)
