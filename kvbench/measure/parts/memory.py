"""The memory part: a cache's bytes, and peaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, PositiveInt

from kvbench.measure.parts.part import Inputs, PartSettings
from kvbench.measure.results import Bytes
from kvbench.storage.frozen import Frozen

if TYPE_CHECKING:
    from kvbench.compressors.compressor import Compressor
    from kvbench.measure.arms import Arm
    from kvbench.measure.bench import ModelBench
    from kvbench.measure.prompt import ExactPrompt
    from kvbench.texts.splits import Split
    from kvbench.texts.windows import Windows


class MemoryWorkload(PartSettings):
    """The cache's bytes after ``prompt`` prefilled tokens, their maximum over ``steps`` decoded ones, and peak memory.

    Peaks need a process of their own, where the prompt is prefilled ``chunk`` tokens at a time, compressed in between,
    and at once. Without ``peaks`` the bytes are walked in the runner's process; where memory is limited, of a prompt
    that is prefilled in such chunks, and else of one that all compressors share. Blocks of tokens leave the recent
    window together, so ``steps`` should be no less than a block (32 tokens unless a spec says otherwise).
    """

    batch: PositiveInt = 1
    prompt: PositiveInt = 2048
    steps: NonNegativeInt = 32
    chunk: PositiveInt = 256
    peaks: bool = True

    @property
    def in_words(self) -> str:
        """Batch, prompt and decoded tokens."""
        return f"batch {self.batch}, after {self.prompt:,} + {self.steps:,} tokens"

    def windows(self, bench: ModelBench, compressor: Compressor, inputs: Inputs) -> dict[str, Windows]:
        """The prompt of every row."""
        bench.check_context("memory (prompt + steps)", self.prompt + self.steps)
        rows = f"{self.batch} × {self.prompt}" if self.batch > 1 else f"{self.prompt}"
        prompts = bench.evaluation_windows(inputs.text, self.prompt, self.batch, inputs.split)
        return {f"prompt {inputs.text} {rows}": prompts}

    def measure(self, bench: ModelBench, arm: Arm, inputs: Inputs) -> MemoryResult:
        """Walk the bytes of ``arm``'s cache; with peaks in a process of its own, which may take a limited time."""
        from kvbench.measure.memory import measure_filled, measure_prefilled
        from kvbench.measure.memory_probe import probe

        if not (self.peaks or inputs.memory_limited):
            prompt = bench.shared(_prompt, inputs.text, self.prompt, inputs.split).repeat(self.batch)
            return measure_filled(arm, prompt, self.steps)
        ids = bench.evaluation_windows(inputs.text, self.prompt, self.batch, inputs.split).ids
        if self.peaks:
            return probe(arm, bench.name, ids, self.steps, self.chunk, inputs.timeout_s)
        return measure_prefilled(arm, ids.to(bench.loaded.model.device), self.steps, self.chunk)


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
    weight_bytes: int | None = None
    """Of the model, tied weights once."""
    expert_bytes: int | None = None
    """Those of them that belong to routed experts, of which a token passes a few."""
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
    layers: int | None = None
    """Attention layers of the model."""
    compressed_layers: int | None = None
    """Those that are compressed; None for baselines. The others keep a sliding window, or stay exact by the plan."""
    compressed_share: float | None = None
    """Share, 0…1, of an uncompressed cache of these tokens that the compressed layers' keys and values are."""
    compressed_at: tuple[int, ...] | None = None
    """The numbers of the compressed layers in the model, from 0."""
    compressed_bytes: int | None = None
    """What these layers hold of the ``allocated`` bytes."""
    kept_layers: dict[str, int] | None = None
    """How many others there are that keep a state of their own: ``sliding_window``, ``linear_attention``, or ``exact``
    by the method."""
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


def _prompt(bench: ModelBench, text: str, tokens: int, split: Split) -> ExactPrompt:
    """One exact prompt, which all arms are filled with."""
    from kvbench.measure.prompt import exact_prompt

    return exact_prompt(bench.loaded.model, bench.geometry, bench.prompt_ids(text, tokens, split))
